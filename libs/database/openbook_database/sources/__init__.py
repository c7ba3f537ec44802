"""Where documents come from: one file for each format, all behind `base.Rows`."""
