"""Checks of derivatives: against differences, against another form, and in exact arithmetic."""
