"""Which examples are wrong: scores, records and predictions of a data set, and the table made of them."""
