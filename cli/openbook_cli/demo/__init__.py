"""`openbook demo`: one model, two editions of a book, a swap under load."""
