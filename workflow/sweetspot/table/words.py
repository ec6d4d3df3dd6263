"""What headers mean: every quantity that a table may give, its synonyms, and units. A synonym is one word here.

Beside the columns of a row, these are the quantities that determine a column or must agree with it: of a request
(`energy_per_request_j`), of a run of many requests (`run_energy_j`, `requests`), of one board (`power_per_gpu_w`), sums
over the batch or the run (`batch_output_tokens`), and rates.
"""

import re
from functools import cache
from typing import NamedTuple

from sweetspot.vocabulary import LATENCIES

UNITS = {
    "energy": {
        **{"J": 1.0, "joule": 1.0, "joules": 1.0, "kJ": 1e3, "kilojoules": 1e3, "MJ": 1e6, "mJ": 1e-3, "uJ": 1e-6},
        **{"millijoules": 1e-3, "megajoules": 1e6, "microjoules": 1e-6, "watthours": 3600.0, "kilowatthours": 3.6e6},
        **{"Wh": 3600.0, "kWh": 3.6e6, "mWh": 3.6, "Ws": 1.0},
    },
    "time": {
        **{"s": 1.0, "sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "msec": 1e-3, "us": 1e-6},
        **{"millisecond": 1e-3, "milliseconds": 1e-3, "microseconds": 1e-6, "ns": 1e-9, "nanoseconds": 1e-9},
        **{"min": 60.0, "mins": 60.0, "minutes": 60.0, "h": 3600.0, "hours": 3600.0},
    },
    "power": {
        **{"W": 1.0, "watt": 1.0, "watts": 1.0, "kW": 1e3, "kilowatts": 1e3, "mW": 1e-3, "milliwatts": 1e-3},
    },
    "count": {"tokens": 1.0, "tok": 1.0, "requests": 1.0},
    "rate": {
        **{
            f"{what}/{second}": 1.0 for what in ("tokens", "token", "tok", "requests", "req") for second in ("s", "sec")
        },
        **{"tps": 1.0, "tok/second": 1.0, "tokens/second": 1.0, "reqs/s": 1.0, "persec": 1.0, "persecond": 1.0},
    },
    "efficiency": {"tokens/J": 1.0, "tok/J": 1.0, "tokens/joule": 1.0, "tokens/Wh": 1 / 3600, "tokens/kWh": 1 / 3.6e6},
    "text": {},
}
_PER: dict[str, tuple[str, ...]] = {"energy_per_request_j": ("request", "req", "prompt", "query", "response")}
_PER["energy_per_output_token_j"] = tuple(f"{kind}token" for kind in ("output", "generated", "completion", "decoded"))
_PER["energy_per_total_token_j"] = ("token", "tok", "totaltoken")
_AMBIGUOUS = {"token", "tok"}  # only output tokens, or also those of the prompt

_N = "inputtokens promptttokens prompttokens contexttokens requesttokens inputlen inputlength inputseqlen "
_N += "inputsequencelength promptlen promptlength isl inputsize avginputlen avginputlength ninputtokens"
_M = "outputtokens completiontokens generatedtokens generationtokens responsetokens newtokens outputlen outputlength "
_M += "outputseqlen outputsequencelength osl outputsize avgout avgoutputlen avgoutputlength noutputtokens"
_QUANTITIES = {  # dimension and synonyms, folded and without a unit
    "model": ("text", "model modelname modelid llm llmname"),
    "batch": (
        "count",
        "batch batchsize bs concurrency maxconcurrency conc numconcurrent concurrentrequests numconcurrentrequests "
        "avgbatch avgbatchsize meanbatchsize",
    ),
    "input_tokens": ("count", f"{_N} nin numinputtokens numprompttokens tauin"),
    "output_tokens": (
        "count",
        f"{_M} nout numoutputtokens numcompletiontokens numgeneratedtokens numgenerationtokens maxnewtokens tauout",
    ),
    "energy_j": (
        "energy",
        "energy totalenergy gpuenergy energyconsumed energyconsumption totalgpuenergy batchenergy energytotal "
        "totaljoules joulestotal",
    ),
    "duration_s": (
        "time",
        "duration latency runtime time elapsed elapsedtime totaltime e2elatency totallatency batchlatency walltime",
    ),
    "gpu": ("text", "gpu gpuname gpumodel gputype hardware hw accelerator device devicename"),
    "engine": ("text", "engine backend framework inferenceengine servingengine inferenceframework"),
    "precision": ("text", "precision dtype datatype weightprecision weightsdtype"),
    "parallelism": ("text", "parallelism"),
    "source": ("text", "source"),
    "repetition": ("count", "repetition rep repeat replicate trial"),
    "experts": ("count", "experts numexperts nexperts numlocalexperts"),
    "experts_per_token": ("count", "expertspertoken numexpertspertok numexpertspertoken expertspertok activeexperts"),
    "idle_w": ("power", "idle idlepower"),
    "requests": (
        "count",
        "requests numrequests nrequests numprompts nprompts totalrequests requestcount completed completedrequests "
        "numsamples nqueries numqueries successfulrequests requestscompleted",
    ),
    "runs": ("count", "runs numruns nruns iterations numiterations numiters iters niter numbatches nbatches loops"),
    "run_energy_j": ("energy", "runenergy"),
    "run_duration_s": ("time", "runduration benchmarkduration"),
    "batch_input_tokens": ("count", "batchinputtokens totalinputtokens totalprompttokens suminputtokens"),
    "batch_output_tokens": (
        "count",
        "batchoutputtokens totaloutputtokens totalcompletiontokens totalgeneratedtokens sumoutputtokens totalnewtokens",
    ),
    "run_input_tokens": ("count", "runinputtokens totalinputtokens totalprompttokens suminputtokens"),
    "run_output_tokens": (
        "count",
        "runoutputtokens totaloutputtokens totalcompletiontokens totalgeneratedtokens sumoutputtokens totalnewtokens",
    ),
    "gpus": ("count", "gpus numgpus ngpus ngpu gpucount numdevices numofhardware worldsize boards"),
    "tensor_parallel": ("count", "tensorparallel tp tpsize tensorparallelsize"),
    "pipeline_parallel": ("count", "pipelineparallel pp ppsize pipelineparallelsize"),
    "power_w": (
        "power",
        "power watts avgwatts meanwatts avgpower averagepower meanpower gpupower gpuavgpower avggpupower powerdraw "
        "gpupowerdraw avgpowerdraw "
        "totalpower totalgpupower avgtotalpower avgtotalgpupower",
    ),
    "power_per_gpu_w": ("power", "powerpergpu avgpowerpergpu pergpupower meanpowerpergpu powerperdevice"),
    "energy_per_gpu_j": ("energy", "energypergpu pergpuenergy energyperdevice"),
    "energy_per_request_j": ("energy", ""),
    "energy_per_output_token_j": ("energy", ""),
    "energy_per_total_token_j": ("energy", ""),
    "output_tokens_per_j": ("efficiency", "outputtokensperjoule outputtokperjoule outputtokensperj efficiency"),
    "total_tokens_per_j": ("efficiency", "totaltokensperjoule tokensperjoule tokperjoule tokensperj tokperj"),
    "output_throughput": (
        "rate",
        "outputthroughput outputtokenthroughput throughput tokenthroughput generationthroughput tokenspersecond "
        "tokpers toks tokenss tps outputtput outputtps outputtokenspersecond outputtokpers outputtokenspers "
        "outputtokenspersec decodethroughput",
    ),
    "total_throughput": (
        "rate",
        "totalthroughput totaltokenthroughput throughput tokenthroughput tokenspersecond tokpers toks tokenss tps "
        "totaltokenspersecond totaltokpers totaltokenspers totaltokenspersec",
    ),
    "request_throughput": ("rate", "requestthroughput requestspersecond reqpers rps qps throughput"),
    "user_throughput": (
        "rate",
        "userthroughput outputthroughputperuser tokenspersecondperuser tokenspersecond tokpers toks tokenss tps",
    ),
    "output_throughput_per_gpu": ("rate", "outputtputpergpu outputthroughputpergpu"),
    "total_throughput_per_gpu": ("rate", "tputpergpu totalthroughputpergpu throughputpergpu"),
    "count": ("count", "count"),
}
NUMBERS = {name: kind for name, (kind, _) in _QUANTITIES.items() if kind != "text"} | dict.fromkeys(LATENCIES, "time")
COUNTS = ("batch", "input_tokens", "output_tokens")
# Headers that name a limit of the engine, or leave the unit of measurement open: hints in questions, never read.
LIMITS = ("maxbatchsize", "maxnumseqs", "maxbatch", "maxnumbatchedtokens", "maxseqs", "maxrunningrequests")
HINTS = {
    "batch": LIMITS,
    "input_tokens": ("n", "in", "input", "prompt", "prompts"),
    "output_tokens": ("m", "out", "output", "completion", "response"),
    "energy_j": ("j", "e"),
    "model": ("name",),
}


class Meaning(NamedTuple):
    """What a header may mean: a quantity, the factor to its unit, and the unit if the header states one."""

    quantity: str
    factor: float
    unit: str

    @property
    def header(self) -> str:
        """A header that means this, for `--map`: `energy_j`, or in another unit `energy_kWh`."""
        return self.quantity if self.factor == 1 else f"{re.sub('_[jsw]$', '', self.quantity)}_{self.unit}"


def folded(header: str) -> str:
    """A header without case, spaces and punctuation: "Energy (J)" is "energyj"."""
    return re.sub(r"[^a-z0-9]+", "", header.casefold().replace("/", "per").replace("µ", "u"))


def meanings(header: str) -> tuple[Meaning, ...]:
    """All that a header may mean; of a nested name ("usage.prompt_tokens") its last part counts.

    A header that is one of our names means that alone.
    """
    if header in _QUANTITIES:
        return (Meaning(header, 1.0, ""),)
    written = (header, header.rpartition(".")[2], header.replace("/", " "))  # "Energy / kJ"
    found = next((known for each in written if (known := _known().get(folded(each)))), [])
    milli, mega = re.search(r"m(J|W)", header), re.search(r"M(J|W)", header)
    kept = [one for one in found if one.unit not in ("mJ", "MJ", "mW") or (milli if one.unit[0] == "m" else mega)]
    return tuple(dict.fromkeys(kept))


def lacks_case(header: str) -> bool:
    """Whether a header may be in millijoules or in megajoules: nine orders apart."""
    return not meanings(header) and any(one.unit in ("mJ", "MJ") for one in _known().get(folded(header), ()))


@cache
def _known() -> dict[str, list[Meaning]]:
    known: dict[str, list[Meaning]] = {}
    for name, (kind, words) in _QUANTITIES.items():
        plain = [*words.split(), folded(name)]
        units = UNITS[kind]
        for what in _PER.get(name, ()):
            plain += [f"{base}per{what}" for base in ("energy", "totalenergy", "gpuenergy")]
            for unit, factor in units.items():
                known.setdefault(f"{folded(unit)}per{what}", []).append(Meaning(name, factor, unit))
        if name in _PER:
            plain += [f"energy{what}" for what in _PER[name]]
        for word in plain:
            known.setdefault(word, []).append(Meaning(name, 1.0, ""))
            for unit, factor in units.items():
                known.setdefault(word + folded(unit), []).append(Meaning(name, factor, unit))
        if name == "energy_j":  # the unit alone: "joules", "kWh"
            for unit in ("joules", "kWh", "Wh", "mWh", "kJ"):
                known.setdefault(folded(unit), []).append(Meaning(name, units[unit], unit))
    for word, found in list(known.items()):
        for what in _AMBIGUOUS:
            if word.endswith(f"per{what}") or f"per{what}" in word:
                found += [one._replace(quantity="energy_per_output_token_j") for one in found if one[0] == _TOKEN]
        if re.search(r"tok(en)?s?perj", word) and "output" not in word:
            found += [one._replace(quantity="output_tokens_per_j") for one in found if one[0] == "total_tokens_per_j"]
    return known


_TOKEN = "energy_per_total_token_j"
