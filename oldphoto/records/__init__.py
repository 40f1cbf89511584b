"""The records that a run leaves behind: the manifest, the report page, XMP, C2PA and PREMIS. Nothing here restores."""
