"""The number side: output text -> option -> metrics, floors, intervals. Knows the data, no model."""
