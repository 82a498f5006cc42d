"""A hospital site: its data, its training, its guard. Imports only `common`."""
