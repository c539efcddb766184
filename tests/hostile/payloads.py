"""Calls that would do harm; most would leave a file behind, the canary, if they were made."""

from pickle_assembler import Call, Name, program, push


def call(path: str, *arguments: object) -> Call:
    return Call(Name(path), arguments)


def attribute(name: str, *path: str) -> Call:
    """What `getattr` finds, so that only harmless modules are named."""
    found: object = Name(name)
    for step in path:
        found = Call(Name("builtins.getattr"), (found, step))
    return found  # type: ignore[return-value] # there is at least one step


BY_ARGUMENT = {
    "touch": """
        os.system posix.system nt.system os.popen subprocess.getoutput subprocess.getstatusoutput
        commands.getoutput popen2.popen2 platform.popen asyncio.create_subprocess_shell imaplib.IMAP4_stream
        torch.utils.collect_env.run numpy.distutils.exec_command.exec_command
    """,
    "argv": """
        subprocess.Popen subprocess.call subprocess.run subprocess.check_call subprocess.check_output
        _posixsubprocess.fork_exec pty.spawn asyncio.unix_events._UnixSubprocessTransport._start
        distutils.spawn.spawn setuptools._distutils.spawn.spawn torch.testing._internal.common_utils.shell
    """,
    "python": """
        idlelib.run.Executive.runcode builtins.eval builtins.exec __builtin__.eval
        code.InteractiveInterpreter.runcode codeop.compile_command timeit.timeit cProfile.run profile.run
        trace.Trace.run pdb.run bdb.Bdb.run doctest.debug_script ast.literal_eval torch.jit.CompilationUnit
        torch._dynamo.guards.GuardBuilder.get numpy.f2py.compile numpy.f2py.crackfortran.myeval pandas.eval
        pandas.core.computation.eval.eval sympy.sympify
    """,
    "nested": """
        lib2to3.pgen2.grammar.Grammar.loads pickle.loads _pickle.loads cPickle.loads pickle._loads dill.loads
        cloudpickle.loads multiprocessing.reduction.ForkingPickler.loads
        torch.utils._config_module.load_config torch.distributed.rpc.internal.deserialize
        torch.storage._load_from_bytes
    """,
    "canary": """
        os.startfile venv.create ensurepip.bootstrap lib2to3.pgen2.pgen.ParserGenerator ctypes.CDLL
        ctypes.util._findSoname_ldconfig __builtin__.execfile runpy.run_path doctest.testfile
        inspect.getmodule linecache.getlines zipimport.zipimporter site.addsitedir logging.config.fileConfig
        logging.FileHandler warnings.warn shutil.rmtree shutil.unpack_archive os.remove os.unlink os.mkdir
        io.open_code pathlib.Path pathlib.PosixPath pathlib:Path.touch fileinput.input sqlite3.connect
        shelve.open pickle.load pickle.Unpickler joblib.load pandas.read_pickle shelve.DbfilenameShelf
        torch.load torch.serialization.load torch.classes.load_library torch.jit.load torch.ops.load_library
        torch.package.PackageImporter numpy.load numpy.memmap numpy.fromfile scipy.io.loadmat
        transformers.AutoModel.from_pretrained datasets.load_dataset tensorflow.io.read_file
    """,
    "nothing": """
        os.fork os.forkpty os.abort asyncio.base_events.BaseEventLoop antigravity.webbrowser
        idlelib.pyshell.ModifiedInterpreter builtins.breakpoint builtins.input builtins.globals code.interact
        code.InteractiveInterpreter pdb.Pdb bdb.Bdb unittest.main gc.get_objects sched.scheduler
        string.Formatter cmd.Cmd tempfile.mktemp tempfile.NamedTemporaryFile socket.socket _socket.socket
        aiohttp.client.ClientSession torch.fx._lazy_graph_module._force_skip_lazy_graph_module
        IPython.start_ipython argparse.Namespace
    """,
    "url": """
        urllib.request.urlopen requests.get xmlrpc.client.ServerProxy torch.hub.load_state_dict_from_url
    """,
    "host": """
        http.client.HTTPSConnection ftplib.FTP poplib.POP3 nntplib.NNTP
    """,
    "target": """
        sys.settrace sys.setprofile torch.compile
    """,
}
"""Names by what they are called with: a shell command, a program and its arguments, Python code, a pickle, ..."""


def arguments(canary: str) -> dict[str, tuple[object, ...]]:
    """Return the arguments of each group of `BY_ARGUMENT`."""
    return {
        "touch": (f"touch {canary}",),
        "argv": (["touch", canary],),
        "python": (f"open({canary!r}, 'w').close()",),
        "nested": (program(push(call("os.system", f"touch {canary}"), 2), 2),),
        "canary": (canary,),
        "nothing": (),
        "url": ("http://127.0.0.1:9/",),
        "host": ("127.0.0.1",),
        "target": (Name("os.system"),),
    }


def payloads(canary: str) -> dict[str, Call]:
    """Return the payloads, under a description each."""
    groups = arguments(canary)
    grouped = {name: Call(Name(name), groups[kind]) for kind, names in BY_ARGUMENT.items() for name in names.split()}
    return grouped | with_several_arguments(canary) | chains(canary)


def with_several_arguments(canary: str) -> dict[str, Call]:
    """Return the payloads whose arguments do not fit a group."""
    kinds = arguments(canary)
    (touch,), (argv,), (python,), (nested,) = (kinds[kind] for kind in ("touch", "argv", "python", "nested"))
    several: dict[str, tuple[object, ...]] = {
        "os.execv": ("/usr/bin/touch", argv),
        "os.execvp": ("touch", argv),
        "posix.execv": ("/usr/bin/touch", argv),
        "os.spawnv": (0, "/usr/bin/touch", argv),
        "os.spawnlp": (0, "touch", "touch", canary),
        "os.posix_spawn": ("/usr/bin/touch", argv, {}),
        "os.kill": (1, 0),
        "os._exit": (0,),
        "os.putenv": ("LD_PRELOAD", canary),
        "posix.putenv": ("A", canary),
        "pydoc.pipepager": ("", touch),
        "pydoc.tempfilepager": ("", touch),
        "multiprocessing.util.spawnv_passfds": (b"/usr/bin/touch", argv, []),
        "multiprocessing.context.Process": (None, Name("os.system"), "n", (touch,)),
        "concurrent.futures.ProcessPoolExecutor": (1,),
        "webbrowser.open": ("file://<C>",),
        "webbrowser.BackgroundBrowser": ("touch",),
        "distutils.file_util.write_file": (canary, ["x"]),
        "setuptools.sandbox.run_setup": (canary, []),
        "pip.main": (["install", canary],),
        "pip._internal.cli.main.main": (["download", canary],),
        "cgitb.lookup": (canary, None, {}),
        "mailcap.findmatch": ({}, touch),
        "_ctypes.dlopen": (canary, 0),
        "builtins.compile": (python, "x", "exec"),
        "builtins.__import__": ("os",),
        "builtins.open": (canary, "w"),
        "builtins.getattr": (Name("builtins.dict"), "get"),
        "builtins.apply": (Name("os.system"), (touch,)),
        "builtins.map": (Name("builtins.exec"), [python]),
        "builtins.type": ("X", (), {}),
        "importlib.import_module": ("os",),
        "importlib.reload": (Name("os"),),
        "importlib.util.spec_from_file_location": ("x", canary),
        "importlib.machinery.SourceFileLoader": ("x", canary),
        "imp.load_source": ("x", canary),
        "_frozen_importlib.__import__": ("os",),
        "runpy.run_module": ("this",),
        "runpy._run_code": (python, {}),
        "timeit.main": (["-n1", python],),
        "cProfile.runctx": (python, {}, {}),
        "types.FunctionType": (None, {}),
        "types.CodeType": (0,),
        "types.ModuleType": ("x",),
        "sys.exit": (3,),
        "sys.modules.get": ("os",),
        "signal.signal": (10, Name("os.system")),
        "atexit.register": (Name("os.system"), touch),
        "threading.Thread": (None, Name("os.system"), "n", (touch,)),
        "threading.Timer": (0, Name("os.system"), (touch,)),
        "_thread.start_new_thread": (Name("os.system"), (touch,)),
        "operator.attrgetter": ("system",),
        "operator.methodcaller": ("system", touch),
        "operator.itemgetter": (0,),
        "_operator.attrgetter": ("system",),
        "functools.partial": (Name("os.system"), touch),
        "functools.reduce": (Name("os.system"), [touch]),
        "itertools.starmap": (Name("os.system"), [(touch,)]),
        "collections.namedtuple": ("x", python),
        "enum.Enum": ("x", python),
        "dataclasses.make_dataclass": (python, []),
        "pkgutil.resolve_name": ("os:system",),
        "pkgutil.get_loader": ("os",),
        "site.addpackage": (canary, "x.pth", None),
        "sysconfig._init_posix": ({},),
        "logging.config.listen": (0,),
        "wsgiref.simple_server.make_server": ("", 0, None),
        "shutil.copy": ("/etc/passwd", canary),
        "shutil.move": ("/etc/x", canary),
        "os.rename": (canary, canary),
        "os.symlink": ("/etc/passwd", canary),
        "os.chmod": (canary, 511),
        "os.open": (canary, 65),
        "io.open": (canary, "w"),
        "_io.open": (canary, "w"),
        "_io.FileIO": (canary, "w"),
        "codecs.open": (canary, "w"),
        "pathlib:Path.write_text": (canary, ""),
        "gzip.open": (canary, "w"),
        "bz2.open": (canary, "w"),
        "lzma.open": (canary, "w"),
        "zipfile.ZipFile": (canary, "w"),
        "tarfile.open": (canary, "w"),
        "dbm.open": (canary, "c"),
        "dbm.dumb.open": (canary, "c"),
        "mmap.mmap": (-1, 1000000000000),
        "socket.create_connection": (("127.0.0.1", 9),),
        "urllib.request.urlretrieve": ("http://127.0.0.1:9/", canary),
        "http.server.HTTPServer": (("", 0), None),
        "smtplib.SMTP": ("127.0.0.1", 9),
        "telnetlib.Telnet": ("127.0.0.1", 9),
        "ssl.get_server_certificate": (("127.0.0.1", 9),),
        "marshal.loads": (b"\xe3",),
        "yaml.unsafe_load": ("!!python/object/apply:os.system [touch <C>]",),
        "copyreg._reconstructor": (Name("os.system"), Name("builtins.object"), None),
        "copyreg.add_extension": ("os", "system", 7),
        "copy_reg._reconstructor": (Name("os.system"), None, None),
        "torch.save": ([], canary),
        "torch.hub.load": ("a/b", "c"),
        "torch.hub.download_url_to_file": ("http://127.0.0.1:9/", canary),
        "torch.set_default_device": ("meta",),
        "torch.utils.cpp_extension.load": ("x", [canary]),
        "torch.utils.cpp_extension.load_inline": ("x", "y"),
        "torch.utils.bottleneck.__main__.run_cprofile": (python, {}),
        "torch.utils.data.datapipes.utils.decoder.basichandlers": ("pickle", nested),
        "torch._inductor.codecache.compile_file": (canary, canary, argv),
        "torch._inductor.cpp_builder.run_compile_cmd": (touch, "."),
        "torch._inductor.runtime.compile_tasks._reload_python_module": ("k", canary),
        "torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression": (python, []),
        "torch.fx.graph_module._forward_from_src": (python, {}),
        "torch.nn.modules.linear.Linear": (2, 2),
        "torch.from_file": (canary, True, 8),
        "torch.multiprocessing.spawn": (Name("os.system"), (touch,)),
        "torch.FloatStorage.from_file": (canary, True, 8),
        "numpy.save": (canary, []),
        "numpy.f2py.capi_maps.getinit": (python, {}),
        "numpy.testing._private.utils.runstring": (python, {}),
        "numpy.testing.runstring": (python, {}),
        "numpy.core.multiarray._reconstruct": (Name("numpy.ndarray"), (0,), b"b"),
        "numpy._core.multiarray.scalar": (None, b"x"),
        "transformers.pipeline": ("x",),
        "jinja2.Template": ("{{ 7 }}",),
        "tensorflow.io.write_file": (canary, ""),
        "rdrop_analysis.factories.call": ("<C>:run",),
        "rdrop_analysis.files.write_whole": (call("pathlib.Path", canary), "", Name("builtins.OSError")),
        "numpy.dtype": ("f8",),
        "uuid._get_command_stdout": ("touch", canary),
    }
    return {path: call(path, *given) for path, given in several.items()}


def chains(canary: str) -> dict[str, Call]:
    """Return payloads that reach what they call through something else."""
    kinds = arguments(canary)
    (touch,), (python,), (nested,) = (kinds[kind] for kind in ("touch", "python", "nested"))
    return {
        "getattr chain to eval": Call(attribute("builtins.object", "__class__", "__subclasses__"), ()),
        "getattr on an imported module": Call(attribute("collections.abc", "sys", "modules", "get"), ("os",)),
        "attrgetter on a harmless module": Call(call("operator.attrgetter", "sys.modules"), (Name("collections.abc"),)),
        "partial of partial": Call(call("functools.partial", call("functools.partial", Name("os.system")), touch), ()),
        "code object made of bytes": Call(call("types.FunctionType", call("marshal.loads", b"\xe3"), {}), ()),
        "name by a call": Call(Call(Name("importlib.import_module"), (call("base64.b64decode", "b3M="),)), ()),
        "getattr through torch": Call(attribute("torch.storage", "_load_from_bytes"), (nested,)),
        "inside a tensor's arguments": call("torch._utils._rebuild_tensor_v2", call("os.system", touch), 0, (1,), (1,)),
        "as type of a tensor": call(
            "torch._tensor._rebuild_from_type_v2", Name("os.system"), Name("torch.Tensor"), (touch,), {}
        ),
        "as a backward hook": call("torch._utils._rebuild_parameter", None, True, Name("os.system")),
        "inside an OrderedDict": call("collections.OrderedDict", [["a", call("os.system", touch)]]),
        "as an argument of encode": call("_codecs.encode", call("builtins.eval", python), "latin1"),
    }


def first_names(value: object) -> list[str]:
    """The names in a payload, in the order of their imports."""
    if isinstance(value, Name):
        return [value.dotted]
    if isinstance(value, Call):
        return first_names(value.function) + first_names(value.arguments)
    if isinstance(value, dict):
        return [name for pair in value.items() for name in first_names(pair)]
    return [name for item in value for name in first_names(item)] if isinstance(value, list | tuple) else []


LIVE = (
    "os.system", "posix.system", "subprocess.call", "subprocess.run", "subprocess.getoutput", "builtins.eval",
    "builtins.exec", "cProfile.run", "os.mkdir", "pickle.loads", "_pickle.loads",
)  # fmt: skip
"""Payloads that are really carried out by an unguarded reader, here."""
