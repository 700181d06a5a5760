"""How a run is shown: terminal tables, an HTML page, a Perfetto trace, files. No metric is made here."""
