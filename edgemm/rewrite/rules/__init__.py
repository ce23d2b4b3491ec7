"""One rewrite per file: `apply(model, io)` changes the model in place and returns how many things it changed."""
