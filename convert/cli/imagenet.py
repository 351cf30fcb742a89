"""`python -m convert imagenet`."""

import argparse

from convert.cli.arguments import add_bundle_arguments, finish, request


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `imagenet`."""
    parser.add_argument("--alpha", type=float, default=1.0, help="width of the network (1.0)")
    parser.add_argument("--size", type=int, default=224, help="of its input in pixels (224)")
    parser.add_argument(
        "--weights", default="imagenet", help="imagenet, none (random) or a file (imagenet)"
    )
    add_bundle_arguments(parser, name="imagenet")


def run(args: argparse.Namespace) -> int:
    """Writes the bundle. Returns the exit code; raises ConvertError."""
    from convert.sources import imagenet
    from convert.sources import keras as sources

    print(f"MobileNetV2 alpha {args.alpha:g} at {args.size} pixels, weights {args.weights}")
    labels = imagenet.labels()
    model = sources.from_keras(imagenet.model(args.alpha, args.size, args.weights))
    args.source = args.source or (
        f"keras.applications.MobileNetV2(alpha={args.alpha:g}, weights={args.weights!r})"
    )
    args.license = args.license or imagenet.LICENSE
    recipe = imagenet.recipe(args.size)
    return finish(args, request(args, model, labels, recipe, "probabilities"))
