"""The stages of a restoration, in one file each; `oldphoto.pipeline` puts them in order."""
