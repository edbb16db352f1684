"""A PDF as a DICOM object (Encapsulated PDF)."""

from pathlib import Path

from ldm_morph_jax.files.dicom_objects.source import Series, Source, SourceFrame, new_object, save

ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"


def write_document(
    path: str | Path, pdf: bytes, title: str, source: Source, series: Series
) -> None:
    """Wrap a PDF, which must name no patient: the object says that nothing is burnt in."""
    new = new_object(source, ENCAPSULATED_PDF, "DOC", series)
    del new.BodyPartExamined  # the one class without it
    new.ConversionType, new.BurnedInAnnotation = "WSD", "NO"
    new.AcquisitionDateTime = ""
    new.DocumentTitle, new.ConceptNameCodeSequence = title, []
    new.SourceInstanceSequence = [
        SourceFrame(header, None).reference() for header in source.headers()
    ]
    new.MIMETypeOfEncapsulatedDocument = "application/pdf"
    new.EncapsulatedDocumentLength = len(pdf)
    new.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    save(path, new)
