"""DICOM objects beside images: segmentations, registrations, reports, documents, contours.

source          the DICOM files of an image or a cine: whose they are, which frame is which
segmentation    SEG, written over time and read as labels
contours        RTSTRUCT, read as labels
registration    Deformable Spatial Registration (REG), written and read
report          measurements as a structured report (TID 1500)
document        a PDF as Encapsulated PDF

What is written belongs to the patient, the study and the frame of reference of its source, in a
series of its own with new UIDs. Only `segmentation` and `report` need highdicom to write; pydicom
does the rest.
"""
