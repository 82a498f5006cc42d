"""The sentences of a site's privacy report. Short words first; no more is claimed than is true."""

from collections.abc import Mapping

from client.report.facts import Mechanism, PrivacyFacts, Run
from common.privacy_words import (
    DASH,
    coin,
    delta_text,
    epsilon_text,
    hits,
    odds_factor,
    percent_up,
    strength,
)

FALSE_ALARMS = 0.01  # at which the share of patients that an observer finds is shown

UNITS: Mapping[str, str] = {
    "patient": "one patient, with all images, labels and lung outlines of theirs",
    "image": "one image, with its labels and lung outline",
}
PURPOSES: Mapping[str, str] = {"training": "training", "metrics": "scores, noised"}

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "Epsilon (ε)",
        "how much all messages together can tell about one unit. 0: nothing. It only grows.",
    ),
    (
        "Delta (δ)",
        "the slack of the limit. It must be far below 1 / number of units: a method "
        "that published one unit in full with that chance would still keep to the definition.",
    ),
    ("Unit", "whose presence is hidden: one patient, or one image."),
    ("Cap", "the epsilon that this site allows over its whole life. The site alone sets it."),
    (
        "Clipping norm (C)",
        "the most that one unit may pull at the model in one step.",
    ),
    (
        "Noise multiplier (σ)",
        "how much noise is added in every step, as a multiple of the clipping norm.",
    ),
    (
        "Sampling rate (q)",
        "the chance of a unit to be drawn in one step. Every step draws anew (Poisson sampling).",
    ),
    (
        "Ledger",
        "the list of every use of the patients. A charge is written before the work begins and is "
        "never given back; each entry holds the hash of the one before.",
    ),
)


def title(facts: PrivacyFacts) -> str:
    """The first line of the page."""
    return f"Privacy report of {facts.site}"


def verdict(facts: PrivacyFacts) -> str:
    """The answer in short: is there a limit, how much of it is used."""
    if facts.charges == 0:
        return "Nothing was learned from this site’s patients under this ledger, so nothing left."
    if not facts.bounded:
        names = ", ".join(run.plan_name for run in facts.runs if run.epsilon is None)
        return (
            f"There is no bound. A run without differential privacy used these patients ({names}). "
            "What left may reveal single patients, and no number limits how much."
        )
    spent = epsilon_text(facts.epsilon)
    text = (
        "Everything that was learned from the patients was noised before it left. How much it can "
        f"still tell about any one {facts.unit} is limited: epsilon {spent} at delta "
        f"{delta_text(facts.delta)}"
    )
    if facts.cap is None:
        return f"{text}. The site has set no cap, so no further private plan may run."
    return f"{text}, of a lifetime cap of {facts.cap:g}."


def over_cap(facts: PrivacyFacts) -> str:
    """A warning when more is spent than the present cap, else empty."""
    if facts.cap is None or facts.epsilon is None or facts.epsilon <= facts.cap:
        return ""
    return (
        f"More is spent than the present cap of {facts.cap:g} allows: the policy was tightened, or "
        "its delta changed, after the spending. No further private plan can run."
    )


def meaning(facts: PrivacyFacts) -> list[str]:
    """What an observer can infer about one unit; empty when there is nothing to say."""
    if facts.charges == 0:
        return []
    epsilon = facts.epsilon
    if epsilon is None:
        return [
            "Since a run without noise used the patients, an observer of its messages may be able "
            "to tell who was among them, and more. How much, nobody can say: keeping images at "
            "home is not by itself a protection."
        ]
    unit = facts.unit
    return [
        f"Think of an observer who sees every message that left {facts.site}, knows everything "
        f"else there is to know, and asks one question: was this {unit} among those that the "
        "model learned from?",
        f"The same limit holds for every other question about what the {unit}’s records add: a "
        f"finding, the look of an image, a label. {strength(epsilon, facts.delta)}",
        "These are worst cases over all observers and all data. They need no trust in the "
        "coordinator or in the other sites.",
    ]


def limits_of_guessing(facts: PrivacyFacts) -> list[tuple[str, str, str]]:
    """What an observer reaches without the messages, and at most with them all."""
    if facts.epsilon is None or facts.charges == 0:
        return []
    epsilon, delta, unit = facts.epsilon, facts.delta, facts.unit
    found = percent_up(hits(epsilon, delta, FALSE_ALARMS))
    return [
        (
            "Right answers, if “was there” and “was not” are equally likely beforehand",
            "50.0 %",
            percent_up(coin(epsilon, delta)),
        ),
        (
            f"Share of the {unit}s who were there that is named, if of the others no more than 1 "
            "in 100 is named wrongly",
            "1.0 %",
            found,
        ),
        (
            "Factor by which the odds of “was there” can change (e^ε, up to the slack δ)",
            "1",
            odds_factor(epsilon),
        ),
    ]


def delta_reason(facts: PrivacyFacts) -> str:
    """Why delta is what it is, measured against the number of units."""
    text = f"Delta is {delta_text(facts.delta)}. It should be far below 1 / number of {facts.unit}s"
    if facts.nominal_units is None:
        return f"{text}; the site has not declared how many it has, so this cannot be judged here."
    expected = facts.delta * facts.nominal_units
    text += f"; with about {facts.nominal_units:,} declared, delta × number = {expected:.2g}"
    if expected >= 1.0:
        return f"{text}. That is too large: at this delta the guarantee may leave out whole units."
    if expected > 0.1:
        return f"{text}. That is large: below 0.1 is usual."
    return f"{text}, which is small, as it should be."


def mechanism(item: Mechanism) -> str:
    """A mechanism in one line of numbers."""
    if item.noise_multiplier == 0:
        return "none: no clipping, no noise"
    steps = "1 step" if item.steps == 1 else f"{item.steps:,} steps"
    text = f"σ {item.noise_multiplier:g}, q {item.sampling_rate:.4g}, {steps}"
    return text if item.purpose == "metrics" else f"{text}, C {item.clipping_norm:g}"


def how(facts: PrivacyFacts) -> list[str]:
    """By what mechanism the training was protected; empty when none was."""
    private = [
        item
        for run in facts.runs
        for item in run.mechanisms
        if item.purpose == "training" and item.noise_multiplier > 0
    ]
    if not private:
        return []
    unit = facts.unit
    texts = [
        "Training is DP-SGD (Abadi et al., 2016) over encoder and heads together: every number "
        "that learns from patients and leaves does so through the same noise.",
        f"Every step draws each {unit} anew with the sampling rate q (Poisson sampling); the "
        f"gradient of each drawn {unit} is cut to the clipping norm C; normal noise of standard "
        "deviation σ × C is added to their sum; the sum is divided by a public number, never by "
        "how many were drawn. A step that draws nobody still adds noise and is charged.",
        "The draws and the noise come from the random generator of the operating system’s kernel; "
        "no seed exists that could repeat them.",
    ]
    if not facts.bounded:
        texts.insert(0, "All of this holds for the runs with noise only.")
    if any(item.purpose == "metrics" for run in facts.runs for item in run.mechanisms):
        texts.append(
            "Scores that left were sums over the validation units, each cut to 1, with normal "
            "noise added (Gaussian mechanism, σ × 1), and were charged to the same ledger."
        )
    return texts


def serving(facts: PrivacyFacts) -> str:
    """What protects heads that were fitted without noise; empty when there are none."""
    if not any(note.kind == "serving" for note in facts.notes):
        return ""
    return (
        "For use inside this hospital, heads were also fitted without noise (serving heads). The "
        "encoder and the updates that left do not depend on them. They themselves are protected by "
        "one thing only: they stay here. Whoever copies them out of this site breaks the guarantee."
    )


def unsent(run: Run) -> str:
    """Rounds that were paid for although nothing left, or a dash."""
    return ", ".join(str(number) for number in run.unsent) or DASH


def audit_text(facts: PrivacyFacts) -> str:
    """What the audit found, or that there was none."""
    audit = facts.audit
    if audit is None:
        return (
            "Not here: no audit result lies in this site’s reports. To make one: consilium-sim "
            "audit --site SITE-FOLDER --out SITE-FOLDER/reports/audit.json. It attacks the code "
            "with this ledger’s mechanism, on made-up patients, and spends no budget."
        )
    share = f"{100 * audit.confidence:g} %"
    what = f"with {audit.canaries or 0:,} made-up canaries"
    if audit.plays is not None:
        what = f"as this ledger was charged, attacked {audit.plays:,} times with made-up patients"
    found = f"It found: {'; '.join(audit.leaks)}. " if audit.leaks else ""
    text = (
        f"A dry run of the same code {what} on {audit.at[:10]} "
        f"shows with {share} confidence that its epsilon is at least {audit.epsilon_lower:.3f}. "
        f"Accounted for it were {epsilon_text(audit.accounted)}. "
    )
    if audit.contradicts:
        return text + (
            f"{found}The code leaked more than it accounted for: do not rely on this report before "
            "that is explained."
        )
    return text + (
        "The first does not exceed the second, so no fault was found. A lower bound can show a "
        "fault; it proves no protection. It speaks of the dry run, not of this ledger."
    )


def limits(facts: PrivacyFacts) -> list[str]:
    """What the numbers do not cover."""
    several = (
        "The unit is one image. A patient with k images is protected less: up to k × epsilon, and "
        "a larger delta."
    )
    clock = (
        "Every answer to a private plan leaves at a fixed time after it came (deadline)."
        if facts.policy.deadline is not None
        else "How long the site takes to answer is not hidden: the policy sets no deadline."
    )
    return [
        *([several] if facts.unit == "image" else []),
        "A patient who was also treated at another hospital of the federation is in both data "
        "sets: what both spend adds up for that patient. No site can see that alone.",
        "Only uses in this ledger count. If the same patients were used by other software, or "
        "published elsewhere (the weights that training started from may have seen public images), "
        "that comes on top.",
        "Facts that are public by design are not hidden: that this site takes part and when, its "
        "name, which findings it annotates, whether it has lung outlines, the number of units that "
        "it declares, and the settings of every run.",
        "What a model learns about people in general is not hidden: a link between a finding and "
        "age, say, applies to a person whether or not that person was in the data.",
        "People and programs inside the hospital are not kept out by this; its own access rules "
        "must do that. The log of the site’s own scores and the cached images are not noised.",
        "The proof is for exact numbers; a computer rounds them. "
        + (
            "Four normal sources a number guard against what rounding may tell (strict_noise)."
            if facts.policy.strict_noise
            else "What rounding of the noise may tell is taken to be negligible "
            "(policy: strict_noise guards further)."
        ),
        clock,
        "The chain of hashes shows an entry that was edited, moved or dropped. It has no key: "
        "whoever may write the ledger can write another whole chain, or set an old copy back. Only "
        "a head kept outside this machine shows that: the coordinator’s, or a signed print of this "
        "page.",
        "This is research software. It is not a medical device.",
    ]
