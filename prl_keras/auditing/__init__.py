"""Which examples are wrong: scores, records and predictions for a data set, and the table made from them."""
