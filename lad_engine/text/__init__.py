"""Words to ids and back: the tokenizer of a checkpoint, prompts and their formats, and the canvas a request becomes."""
