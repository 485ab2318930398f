"""Rules whose outputs are not plain files: a tree artifact, and symlinks made by an action."""

_TREE = """
set -eu
mkdir -p "$1/full/deep/deeper" "$1/empty/hollow"
printf one >"$1/full/one.txt"
printf two >"$1/full/deep/two.txt"
printf three >"$1/full/deep/deeper/three.txt"
printf '#!/bin/sh\\necho ran\\n' >"$1/full/run.sh"
chmod 755 "$1/full/run.sh"
"""

def _tree_impl(ctx):
    tree = ctx.actions.declare_directory(ctx.label.name)
    ctx.actions.run_shell(
        outputs = [tree],
        command = _TREE,
        arguments = [tree.path],
        mnemonic = "GrowTree",
    )
    return [DefaultInfo(files = depset([tree]))]

tree = rule(
    implementation = _tree_impl,
    doc = "A directory with nested files, an executable and an empty directory inside an otherwise empty one.",
)

def _listing_impl(ctx):
    listing = ctx.actions.declare_file(ctx.label.name + ".txt")
    tree_files = ctx.files.tree
    ctx.actions.run_shell(
        inputs = tree_files,
        outputs = [listing],
        command = "cd \"$1\" && find . -type f | LC_ALL=C sort >\"$OLDPWD/$2\"",
        arguments = [tree_files[0].path, listing.path],
        mnemonic = "ListTree",
    )
    return [DefaultInfo(files = depset([listing]))]

listing = rule(
    implementation = _listing_impl,
    attrs = {"tree": attr.label(mandatory = True)},
    doc = "The files of a tree artifact by name: an action with a tree artifact among its inputs.",
)

def _linked_impl(ctx):
    target = ctx.actions.declare_file(ctx.label.name + "_target.txt")
    link = ctx.actions.declare_file(ctx.label.name + "_link.txt")
    ctx.actions.run_shell(
        outputs = [target, link],
        command = "printf 'at the end of the link' >\"$1\" && ln -s \"$(basename \"$1\")\" \"$2\"",
        arguments = [target.path, link.path],
        mnemonic = "MakeLink",
    )
    return [DefaultInfo(files = depset([target, link]))]

linked = rule(
    implementation = _linked_impl,
    doc = "A file and a relative symlink to it, both outputs of one action.",
)
