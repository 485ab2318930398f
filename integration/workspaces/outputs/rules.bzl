"""Rules whose outputs are large, many, empty, or not files at all."""

def _one_file_impl(ctx, command, arguments, mnemonic, inputs = []):
    file = ctx.actions.declare_file(ctx.label.name + ".out")
    ctx.actions.run_shell(
        inputs = inputs,
        outputs = [file],
        command = command,
        arguments = [file.path] + arguments,
        mnemonic = mnemonic,
    )
    return [DefaultInfo(files = depset([file]))]

def _tree_impl(ctx, command, mnemonic, arguments = []):
    tree = ctx.actions.declare_directory(ctx.label.name)
    ctx.actions.run_shell(
        outputs = [tree],
        command = command,
        arguments = [tree.path] + arguments,
        mnemonic = mnemonic,
    )
    return [DefaultInfo(files = depset([tree]))]

# A block that is made once and then numbered, which is quick, and what comes out is known without looking.
_LARGE = """
set -eu
yes 'one line of many' | head -c 1048568 >"$1.block"
number=0
while [ "$number" -lt "$2" ]; do
    printf '%08d' "$number"
    cat "$1.block"
    number=$((number + 1))
done >"$1"
rm "$1.block"
"""

def _large_impl(ctx):
    return _one_file_impl(ctx, _LARGE, [str(ctx.attr.mebibytes)], "MakeLarge")

large = rule(
    implementation = _large_impl,
    attrs = {"mebibytes": attr.int(mandatory = True)},
    doc = "A file of so many mebibytes without holes, each of which begins with its number.",
)

def _count_of_impl(ctx):
    file = ctx.file.file
    return _one_file_impl(
        ctx,
        "sha256sum <\"$2\" | cut -d ' ' -f 1 >\"$1\" && wc -c <\"$2\" >>\"$1\"",
        [file.path],
        "Measure",
        [file],
    )

count_of = rule(
    implementation = _count_of_impl,
    attrs = {"file": attr.label(mandatory = True, allow_single_file = True)},
    doc = "SHA-256 and size in bytes of a file, as an action sees it.",
)

_LEAVES = """
set -eu
folder=0
while [ "$folder" -lt "$2" ]; do
    mkdir -p "$1/f$folder"
    leaf=0
    while [ "$leaf" -lt "$3" ]; do
        printf '%s' "leaf $leaf of $folder" >"$1/f$folder/l$leaf.txt"
        leaf=$((leaf + 1))
    done
    folder=$((folder + 1))
done
"""

def _leaves_impl(ctx):
    return _tree_impl(ctx, _LEAVES, "GrowLeaves", [str(ctx.attr.folders), str(ctx.attr.files)])

leaves = rule(
    implementation = _leaves_impl,
    attrs = {
        "files": attr.int(mandatory = True),
        "folders": attr.int(mandatory = True),
    },
    doc = "A directory with so many folders of so many different files.",
)

def _listing_impl(ctx):
    tree = ctx.files.tree[0]
    return _one_file_impl(
        ctx,
        "out=\"$PWD/$1\" && cd \"$2\" && find . -type f -exec sha256sum {} + | LC_ALL=C sort -k 2 >\"$out\"",
        [tree.path],
        "ListTree",
        [tree],
    )

listing = rule(
    implementation = _listing_impl,
    attrs = {"tree": attr.label(mandatory = True)},
    doc = "SHA-256 and name of each file of a tree artifact, as an action sees it.",
)

_LINKS = """
set -eu
printf 'the file' >"$1"
mkdir -p "$2/inner"
printf 'inner' >"$2/inner/file.txt"
ln -s "$(basename "$1")" "$3"
ln -s "$(basename "$2")" "$4"
"""

def _links_impl(ctx):
    name = ctx.label.name
    file = ctx.actions.declare_file(name + "_file.txt")
    folder = ctx.actions.declare_directory(name + "_folder")
    to_file = ctx.actions.declare_file(name + "_to_file")
    # As a directory Bazel 4.2 makes it itself before the action, and then has no place for the link.
    to_folder = ctx.actions.declare_file(name + "_to_folder")
    outputs = [file, folder, to_file, to_folder]
    ctx.actions.run_shell(
        outputs = outputs,
        command = _LINKS,
        arguments = [output.path for output in outputs],
        mnemonic = "MakeLinks",
    )
    return [DefaultInfo(files = depset(outputs))]

links = rule(
    implementation = _links_impl,
    doc = "A file, a directory, and a relative symlink to each, all outputs of one action.",
)

_LINKED_TREE = """
set -eu
mkdir -p "$1/real/deep"
printf one >"$1/real/one.txt"
printf two >"$1/real/deep/two.txt"
ln -s real/one.txt "$1/to_file"
ln -s ../one.txt "$1/real/deep/up"
ln -s real/deep "$1/to_folder"
"""

def _linked_tree_impl(ctx):
    return _tree_impl(ctx, _LINKED_TREE, "LinkTree")

linked_tree = rule(
    implementation = _linked_tree_impl,
    doc = "A directory with relative symlinks to a file beside it, a file above it and a directory.",
)

def _unresolved_impl(ctx):
    link = ctx.actions.declare_symlink(ctx.label.name)
    ctx.actions.run_shell(
        outputs = [link],
        command = "ln -s ../not/there \"$1\"",
        arguments = [link.path],
        mnemonic = "Dangle",
    )
    return [DefaultInfo(files = depset([link]))]

unresolved = rule(
    implementation = _unresolved_impl,
    doc = "A symlink that leads nowhere. Takes --experimental_allow_unresolved_symlinks.",
)

_SHAPED = """
set -eu
mkdir -p "$1/a/b/c/d/e/f/g" "$1/none/at/all" "$1/twin" "$1/a/twin"
printf deep >"$1/a/b/c/d/e/f/g/deep.txt"
: >"$1/empty.txt"
printf same >"$1/twin/same.txt"
printf same >"$1/a/twin/same.txt"
printf '#!/bin/sh\\necho ran\\n' >"$1/tool"
cp "$1/tool" "$1/a/no_tool"
chmod 755 "$1/tool"
chmod 444 "$1/a/no_tool"
printf odd >"$1/with space.txt"
"""

def _shaped_impl(ctx):
    return _tree_impl(ctx, _SHAPED, "ShapeTree")

shaped_tree = rule(
    implementation = _shaped_impl,
    doc = """Nested seven deep, the same directory twice, the same content with and without execute permission, an
empty file, nothing but empty directories below one.""",
)

def _empty_directory_impl(ctx):
    return _tree_impl(ctx, "mkdir -p \"$1\"", "MakeNothing")

empty_directory = rule(
    implementation = _empty_directory_impl,
    doc = "A directory with nothing in it.",
)
