"""The training recipe. Imports the rest of the package; nothing but the command line imports it."""
