"""Train a recipe's tokenizer: `python train_tokenizer.py --config configs/recipes/quickstart.yaml`."""

from ant_hf.cli.main import run, tokenizer_app

if __name__ == "__main__":
    run(tokenizer_app)
