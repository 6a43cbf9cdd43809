"""Output text -> tokens -> statements about options; `mmcoref.evaluation.answer` chooses the answer among them."""
