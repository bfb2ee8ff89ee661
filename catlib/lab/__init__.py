"""The laboratory around the method: what notebooks and studies need."""
