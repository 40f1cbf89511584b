"""Photos in files: reading, writing, formats, colour and metadata. No networks."""
