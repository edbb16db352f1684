"""Images, videos, transforms, DICOM objects and tables; the only room that knows millimetres."""
