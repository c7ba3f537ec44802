"""The World Factbook as a book to copy from: short passages, questions with known evidence, and names made up."""
