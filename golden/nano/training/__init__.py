"""How the nano checkpoint was made: scenes, tokenizer, latents, training, scoring."""
