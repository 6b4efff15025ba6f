"""Where runs are tracked: one interface, several stores."""
