"""The networks: student, teacher, classifier and their parts, and the masks that pretraining draws."""
