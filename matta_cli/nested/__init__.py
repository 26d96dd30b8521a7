"""The one mechanism: a Student is a dense module that runs on views of the TA's tensors."""
