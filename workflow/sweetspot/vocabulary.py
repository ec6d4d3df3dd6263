"""Names and numbers that tables, laws and pages share."""

SELECTORS = ("gpu", "engine", "precision")  # with the model, they make a group: rows that one law may describe
UNSPECIFIED = "unspecified"  # the value of a column that the table lacks

CONFIDENCE = 0.95  # of every interval
LEVEL = f"{100 * CONFIDENCE:g} %"
