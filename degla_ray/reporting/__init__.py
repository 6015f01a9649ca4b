"""Tables, plots and report pages. Jobs call this package last, and no other package imports it."""
