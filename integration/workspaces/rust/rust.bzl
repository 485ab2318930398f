"""Rules for Rust that call one compiler, known by its absolute path, once for each crate.

The compiler is a program of the machine that runs the action, not an input: `--define=rustc=PATH` names it, and
without it the path is Debian's. Dependencies are passed by name with --extern; what those depend on is found through
-L dependency=DIRECTORY.
"""

CrateInfo = provider(
    doc = "A compiled library crate.",
    fields = {
        "name": "the name other crates use it under",
        "rlib": "the compiled file",
        "transitive": "depset of the compiled files of all crates below",
    },
)

_DEBIAN_RUSTC = "/usr/bin/rustc"

def _compile(ctx, output, crate_type, extra = []):
    root = ctx.file.crate_root if ctx.file.crate_root else ctx.files.srcs[0]
    crates = [dep[CrateInfo] for dep in ctx.attr.deps]
    below = depset(
        [crate.rlib for crate in crates],
        transitive = [crate.transitive for crate in crates],
    )
    arguments = ctx.actions.args()
    arguments.add(root)
    arguments.add("--crate-name", ctx.attr.crate_name or ctx.label.name)
    arguments.add("--crate-type", crate_type)
    arguments.add("--edition", "2021")
    arguments.add("-Copt-level=1")
    arguments.add("-Clinker=/usr/bin/gcc")
    arguments.add("-Cmetadata=" + str(ctx.label))
    arguments.add("--remap-path-prefix", ".=/workspace")
    arguments.add_all(crates, map_each = _extern, before_each = "--extern")
    arguments.add_all(below, map_each = _folder, before_each = "-L", uniquify = True)
    arguments.add_all(extra)
    arguments.add("-o", output)
    ctx.actions.run(
        executable = ctx.var.get("rustc", _DEBIAN_RUSTC),
        arguments = [arguments],
        inputs = depset(ctx.files.srcs + ctx.files.crate_root, transitive = [below]),
        outputs = [output],
        mnemonic = "Rustc",
        progress_message = "Compiling crate %s" % ctx.label,
        use_default_shell_env = True,
    )
    return below

def _extern(crate):
    return "%s=%s" % (crate.name, crate.rlib.path)

def _folder(rlib):
    return "dependency=" + rlib.dirname

def _library_impl(ctx):
    name = ctx.attr.crate_name or ctx.label.name
    rlib = ctx.actions.declare_file("lib%s.rlib" % name)
    below = _compile(ctx, rlib, "rlib")
    return [
        DefaultInfo(files = depset([rlib])),
        CrateInfo(name = name, rlib = rlib, transitive = below),
    ]

def _binary_impl(ctx):
    program = ctx.actions.declare_file(ctx.label.name)
    _compile(ctx, program, "bin")
    return [DefaultInfo(files = depset([program]), executable = program)]

def _test_impl(ctx):
    program = ctx.actions.declare_file(ctx.label.name)
    _compile(ctx, program, "bin", extra = ["--test"])
    return [DefaultInfo(files = depset([program]), executable = program)]

_ATTRIBUTES = {
    "crate_name": attr.string(doc = "the label's name unless given"),
    "crate_root": attr.label(allow_single_file = [".rs"], doc = "the first of srcs unless given"),
    "deps": attr.label_list(providers = [CrateInfo]),
    "srcs": attr.label_list(allow_files = [".rs"]),
}

rust_library = rule(implementation = _library_impl, attrs = _ATTRIBUTES)

rust_binary = rule(implementation = _binary_impl, attrs = _ATTRIBUTES, executable = True)

rust_test = rule(implementation = _test_impl, attrs = _ATTRIBUTES, test = True)
