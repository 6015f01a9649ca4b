"""Tables, plots and pages. Jobs call it last; nothing below imports it."""
