"""What a trained agent does with its memory, for people to look at: recordings, pages, films, diagnoses."""
