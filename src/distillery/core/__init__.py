"""What every wing shares: specs, records, protocols, seeds and whole-file writing."""
