"""Train a model from a recipe: `accelerate launch pretrain.py --config configs/recipes/quickstart.yaml`."""

from ant_hf.cli.main import pretrain_app, run

if __name__ == "__main__":
    run(pretrain_app)
