"""DICOM objects beside images: segmentations, registrations, reports, documents, contours.

What is written belongs to the patient, the study and the frame of reference of its source, in a
series of its own with new UIDs. Only `segmentation` and `report` need highdicom to write; pydicom
does the rest.
"""
