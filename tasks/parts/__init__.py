"""What tasks share: words and sentences, prose that carries them, cutting text into documents, heads of questions."""
