"""`octavo crd`: print the CustomResourceDefinition."""

import click


@click.command()
def crd() -> None:
    """Print the CustomResourceDefinition of LLMDeployment as YAML.

    \b
    Install it by: octavo crd | kubectl apply --server-side -f -
    """
    from octavo_operator.api.crd import crd_yaml

    click.echo(crd_yaml(), nl=False)
