"""Pure networks: frozen config dataclasses and plain modules. No files, no devices, no printing, no options."""
