"""The coordinator: firewall, rounds, strategy, report. Imports only `common`."""
