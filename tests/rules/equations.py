"""The update rules, a second time: from the papers and from torch's documentation, with the parentheses promised.

Nothing here reads fastoptim/rules/. An equation takes one element: ``(p, g, states, t, o, k)`` with the states of the
step before in the order of the class (none before step 1), the number of the step, the options, and `k`, which rounds
a coefficient once to the format; it returns the parameter and the states. The operands have ``+ - * /``, ``root()``,
``<``, ``>`` and ``or_larger``, of whatever arithmetic.
"""

from __future__ import annotations

import math
from itertools import product

import fastoptim as fo

# --- What comes before and after a rule ----------------------------------------------------------------------------


def entering(p, g, o, k, decay=True):
    """The gradient, turned round for ascent, with coupled weight decay in it."""
    g = k(-1.0 if o.get("maximize") else 1.0) * g
    return g + k(o["weight_decay"]) * p if decay and o.get("weight_decay") else g


def moved(p, u, o, k):
    """The parameter behind a step, with decoupled weight decay in it."""
    if not o.get("weight_decay"):
        return p - u
    rate = 1.0 if o.get("decay_mode") == "fixed" else o["lr"]
    return p - (k(rate * o["weight_decay"]) * p + u)


def mean(beta, old, new, k):
    return k(beta) * old + k(1.0 - beta) * new


def signed(size, x, k):
    """``size * sign(x)``; zeros and NaN come out as they are."""
    return size if x > k(0.0) else k(0.0) - size if x < k(0.0) else x


def within(x, low, high):
    """NaN comes out as it is."""
    x = low if x < low else x
    return high if x > high else x


# --- SGD and Adam --------------------------------------------------------------------------------------------------


def sgd(p, g, states, t, o, k):
    lr, mu, mode = o["lr"], o.get("momentum", 0.0), o.get("momentum_mode", "torch")
    apart = o.get("decoupled_weight_decay", False)
    g = entering(p, g, o, k, decay=not apart)
    if not apart:
        o = o | {"weight_decay": 0.0}
    if not mu:
        return moved(p, k(lr) * g, o, k), []
    if mode == "lr_inside":
        share, rate = lr, 1.0
    elif mode == "damped":
        share, rate = 1.0 - mu, lr
    else:
        share, rate = (1.0 if t == 1 else 1.0 - o.get("dampening", 0.0)), lr
    v = states[0] if states else k(0.0)
    v = k(mu) * v + k(share) * g
    u = k(mu) * v + k(share) * g if o.get("nesterov") else v
    return moved(p, k(rate) * u, o, k), [v]


def adam(p, g, states, t, o, k, decoupled=False):
    lr, eps = o["lr"], o["eps"]
    beta1, beta2 = o["betas"]
    g = entering(p, g, o, k, decay=not decoupled)
    m, v, *largest = states or [k(0.0)] * (3 if o.get("amsgrad") else 2)
    m, v = mean(beta1, m, g, k), mean(beta2, v, g * g, k)
    largest = [x.or_larger(v) for x in largest]
    bc1, bc2 = 1.0 - beta1**t, 1.0 - beta2**t
    if o.get("eps_mode", "torch") == "hat":
        step, factor = lr * math.sqrt(bc2) / bc1, 1.0
    else:
        step, factor = lr / bc1, 1.0 / math.sqrt(bc2)
    u = (k(step) * m) / ((largest[0] if largest else v).root() * k(factor) + k(eps))
    return moved(p, u, o if decoupled else {}, k), [m, v, *largest]


def adamw(p, g, states, t, o, k):
    return adam(p, g, states, t, o, k, decoupled=True)


# --- Signs and averages --------------------------------------------------------------------------------------------


def signsgd(p, g, states, t, o, k):
    return moved(p, signed(k(o["lr"]), entering(p, g, o, k, decay=False), k), o, k), []


def signum(p, g, states, t, o, k):
    (m,) = states or [k(0.0)]
    m = mean(o["momentum"], m, entering(p, g, o, k, decay=False), k)
    return moved(p, signed(k(o["lr"]), m, k), o, k), [m]


def lion(p, g, states, t, o, k):
    (m,) = states or [k(0.0)]
    g = entering(p, g, o, k, decay=False)
    u = signed(k(o["lr"]), mean(o["betas"][0], m, g, k), k)
    return moved(p, u, o, k), [mean(o["betas"][1], m, g, k)]


def rprop(p, g, states, t, o, k):
    before, size = states or [k(0.0), k(o["lr"])]
    g = entering(p, g, o, k)
    agreement = g * before
    if agreement > k(0.0):
        size = size * k(o["etas"][1])
    elif agreement < k(0.0):
        size, g = size * k(o["etas"][0]), k(0.0)
    size = within(size, *map(k, o["step_sizes"]))
    return p - signed(size, g, k), [g, size]


def asgd(p, g, states, t, o, k):
    (average,) = states or [k(0.0)]
    g = entering(p, g, o, k)
    rate = o["lr"] / (1.0 + o["lambd"] * o["lr"] * (t - 1)) ** o["alpha"]
    weight = 1.0 if t == 1 else 1.0 / max(1.0, t - 1 - o["t0"])
    p = p - (k(o["lambd"] * rate) * p + k(rate) * g)
    return p, [k(1.0 - weight) * average + k(weight) * p]


def schedule_free(p, z, u, beta, t, o, k):
    """y and z: x is not kept, ``y = (1 - beta) * z + beta * x`` gives it."""
    rates = [o["lr"] * min(1.0, s / (o["warmup_steps"] or 1)) for s in range(1, t + 1)]
    sums = [0.0]
    for s in range(1, t + 1):
        sums.append(sums[-1] + s ** o["r"] * max(rates[:s]) ** o["weight_lr_power"])
    share = (sums[-1] - sums[-2]) / sums[-1]
    y = (k(1.0 - share) * p + k(share) * z) - k(rates[-1] * (1.0 - beta * (1.0 - share))) * u
    return y, z - k(rates[-1]) * u


def schedule_free_sgd(p, g, states, t, o, k):
    y, z = schedule_free(p, states[0] if states else p, entering(p, g, o, k), o["momentum"], t, o, k)
    return y, [z]


def schedule_free_adamw(p, g, states, t, o, k):
    z, v = states or [p, k(0.0)]
    g = entering(p, g, o, k, decay=False)
    v = mean(o["betas"][1], v, g * g, k)
    root = v.root() * k(1.0 / math.sqrt(1.0 - o["betas"][1] ** t))
    u = g / (root + k(o["eps"])) + k(o["weight_decay"]) * p
    y, z = schedule_free(p, z, u, o["betas"][0], t, o, k)
    return y, [z, v]


# --- Means and sums of squares -------------------------------------------------------------------------------------


def under(x, o, k):
    """What steps are divided by: the root of `x`, with eps where the mode says."""
    return (x + k(o["eps"])).root() if o.get("eps_mode") == "root" else x.root() + k(o["eps"])


def rmsprop(p, g, states, t, o, k):
    mu, centered = o.get("momentum"), o.get("centered", False)
    v, *others = states or [k(0.0)] * (1 + centered + bool(mu))
    g = entering(p, g, o, k)
    v = w = mean(o["alpha"], v, g * g, k)
    kept = [v]
    if centered:
        a = mean(o["alpha"], others[0], g, k)
        kept.append(a)
        w = v - a * a
        w = k(0.0) if w < k(0.0) else w
    if not mu:
        return p - (k(o["lr"]) * g) / under(w, o, k), kept
    inside = o.get("momentum_mode") == "lr_inside"
    x = k(mu) * others[-1] + (k(o["lr"]) * g if inside else g) / under(w, o, k)
    return p - (x if inside else k(o["lr"]) * x), [*kept, x]


def adagrad(p, g, states, t, o, k):
    (s,) = states or [k(o["initial_accumulator_value"])]
    g = entering(p, g, o, k)
    s = s + g * g
    return p - (k(o["lr"] / (1.0 + (t - 1) * o["lr_decay"])) * g) / under(s, o, k), [s]


def adadelta(p, g, states, t, o, k):
    v, x = states or [k(0.0), k(0.0)]
    g = entering(p, g, o, k)
    v = mean(o["rho"], v, g * g, k)
    d = ((x + k(o["eps"])).root() / (v + k(o["eps"])).root()) * g
    return p - k(o["lr"]) * d, [v, mean(o["rho"], x, d * d, k)]


def adamax(p, g, states, t, o, k):
    m, x = states or [k(0.0), k(0.0)]
    g, eps, keras = entering(p, g, o, k), k(o["eps"]), o.get("eps_mode") == "keras"
    m = mean(o["betas"][0], m, g, k)
    size = k(0.0) - g if g < k(0.0) else g
    x = (k(o["betas"][1]) * x).or_larger(size + (k(0.0) if keras else eps))
    return p - (k(o["lr"] / (1.0 - o["betas"][0] ** t)) * m) / (x + eps if keras else x), [m, x]


def ftrl(p, g, states, t, o, k):
    n, z = states or [k(o["initial_accumulator_value"]), k(0.0)]
    g = entering(p, g, o, k)
    before, n = n.root(), n + g * g
    z = (z + g) - ((n.root() - before) * k(1.0 / o["lr"])) * p
    near = within(z, k(-o["l1"]), k(o["l1"]))
    return (near - z) / (n.root() * k(1.0 / o["lr"]) + k(2.0 * o["l2"] + o["beta"] / o["lr"])), [n, z]


# --- Adam's relatives ----------------------------------------------------------------------------------------------


def below(v, beta, t, o, k):
    """Adam's denominator, with eps behind the correction."""
    return v.root() * k(1.0 / math.sqrt(1.0 - beta**t)) + k(o["eps"])


def nadam(p, g, states, t, o, k):
    m, v = states or [k(0.0), k(0.0)]
    lr, (beta1, beta2) = o["lr"], o["betas"]
    apart = o.get("decoupled_weight_decay", False)
    g = entering(p, g, o, k, decay=not apart)
    m, v = mean(beta1, m, g, k), mean(beta2, v, g * g, k)
    if o.get("mode", "torch") == "torch":
        mu = [beta1 * (1.0 - 0.5 * 0.96 ** (s * o["momentum_decay"])) for s in range(1, t + 2)]
        together = math.prod(mu[:t], start=1.0)
        now, ahead = lr * (1.0 - mu[t - 1]) / (1.0 - together), lr * mu[t] / (1.0 - together * mu[t])
    else:
        now = lr * (1.0 - beta1) / (1.0 - beta1**t)
        ahead = lr * beta1 / (1.0 - beta1 ** (t + (o["mode"] == "optax")))
    return moved(p, (k(now) * g + k(ahead) * m) / below(v, beta2, t, o, k), o if apart else {}, k), [m, v]


def radam(p, g, states, t, o, k):
    m, v = states or [k(0.0), k(0.0)]
    lr, (beta1, beta2) = o["lr"], o["betas"]
    apart = o.get("decoupled_weight_decay", False)
    g = entering(p, g, o, k, decay=not apart)
    m, v = mean(beta1, m, g, k), mean(beta2, v, g * g, k)
    bc1, bc2 = 1.0 - beta1**t, 1.0 - beta2**t
    last = 2.0 / (1.0 - beta2) - 1.0
    rho = last - 2.0 * t * beta2**t / bc2
    if rho <= 5.0:
        u = k(lr / bc1) * m
        u = u if v.root() < k(math.inf) else k(math.nan)  # as RAdam's notes say
    else:
        rectified = math.sqrt((rho - 4.0) * (rho - 2.0) * last / ((last - 4.0) * (last - 2.0) * rho))
        u = (k(lr / bc1 * math.sqrt(bc2) * rectified) * m) / (v.root() + k(o["eps"]))
    return moved(p, u, o if apart else {}, k), [m, v]


def adabelief(p, g, states, t, o, k):
    m, v = states or [k(0.0), k(0.0)]
    g = entering(p, g, o, k, decay=False)
    m = mean(o["betas"][0], m, g, k)
    v = mean(o["betas"][1], v, (g - m) * (g - m), k) + k(o["eps_root"])
    u = (k(o["lr"] / (1.0 - o["betas"][0] ** t)) * m) / below(v, o["betas"][1], t, o, k)
    return moved(p, u, o, k), [m, v]


def yogi(p, g, states, t, o, k):
    m, v = states or [k(o["initial_accumulator_value"])] * 2
    g = entering(p, g, o, k, decay=False)
    m, square = mean(o["betas"][0], m, g, k), g * g
    change = k(1.0 - o["betas"][1]) * square
    v = v - change if v > square else v + change if v < square else v
    u = (k(o["lr"] / (1.0 - o["betas"][0] ** t)) * m) / below(v, o["betas"][1], t, o, k)
    return moved(p, u, o, k), [m, v]


def adopt(p, g, states, t, o, k):
    g = entering(p, g, o, k, decay=False)
    if t == 1:
        m, v = g - g if not g < k(math.inf) and not g > k(-math.inf) else k(0.0), g * g  # NaN alone gets through
    else:
        m, v = states
        clip = (t - 1) ** 0.25
        root, eps = v.root(), k(o["eps"])
        m = mean(o["betas"][0], m, within(g / (eps if root < eps else root), k(-clip), k(clip)), k)
        v = mean(o["betas"][1], v, g * g, k)
    return moved(p, k(o["lr"]) * m, o, k), [m, v]


def laprop(p, g, states, t, o, k):
    m, v = states or [k(0.0), k(0.0)]
    lr, (beta1, beta2) = o["lr"], o["betas"]
    g = entering(p, g, o, k, decay=False)
    v = mean(beta2, v, g * g, k)
    m = k(beta1) * m + k((1.0 - beta1) * lr) * (g / below(v, beta2, t, o, k))
    held = 0.0
    for _ in range(t):
        held = beta1 * held + (1.0 - beta1) * lr
    return moved(p, k(lr / held) * m, o, k), [m, v]


def ademamix(p, g, states, t, o, k):
    m, v, slow = states or [k(0.0)] * 3
    lr, alpha, warm, (beta1, beta2, beta3) = o["lr"], o["alpha"], o["warmup_steps"], o["betas"]
    g = entering(p, g, o, k, decay=False)
    if t < warm:
        share = t / warm
        alpha *= share
        first, third = math.log(beta1), math.log(beta3)
        beta3 = min(math.exp(first * third / ((1.0 - share) * third + share * first)), beta3)
    m, v, slow = mean(beta1, m, g, k), mean(beta2, v, g * g, k), mean(beta3, slow, g, k)
    u = (k(lr / (1.0 - beta1**t)) * m + k(lr * alpha) * slow) / below(v, beta2, t, o, k)
    return moved(p, u, o, k), [m, v, slow]


def adan(p, g, states, t, o, k):
    g = entering(p, g, o, k, decay=False)
    m, v, w, before = states or [k(0.0), k(0.0), k(0.0), g]
    lr, (beta1, beta2, beta3) = o["lr"], o["betas"]
    weight = 1.0 - beta2 if o.get("mode") == "optax" else beta2
    d = g - before
    m, w, ahead = mean(beta1, m, g, k), mean(beta2, w, d, k), g + k(weight) * d
    v = mean(beta3, v, ahead * ahead, k)
    u = k(lr / (1.0 - beta1**t)) * m + k(lr * weight / (1.0 - beta2**t)) * w
    return moved(p, u / below(v, beta3, t, o, k), o, k), [m, v, w, g]


# --- Whole arrays: (parameters, gradients, states, t, options, k) -> the parameters and the states of every element --


def length(terms):
    """Euclidean norm of 16 numbers at most, each in a lane of its own; scaled where squares leave the range."""
    terms = [float(x) for x in terms]

    def summed(factor):
        lanes = [(factor * x) * (factor * x) for x in terms] + [0.0] * (16 - len(terms))
        while len(lanes) > 1:
            lanes = [a + b for a, b in zip(lanes[::2], lanes[1::2], strict=True)]
        return lanes[0]

    total = summed(1.0)
    if total == math.inf:
        return math.sqrt(summed(2.0**-600)) * 2.0**600
    return math.sqrt(summed(2.0**600)) / 2.0**600 if total < 2.0**-900 else math.sqrt(total)


def spoiled(norms, states, k):
    """Whether a norm is no number: parameters and states become NaN then."""
    nan = k(math.nan)
    return None if all(map(math.isfinite, norms)) else ([nan] * len(states), [[nan] * len(s) for s in states])


def moments(gs, states, o, k):
    old = [state or [k(0.0)] * (3 if o.get("amsgrad") else 2) for state in states]
    new = []
    for g, (m, v, *largest) in zip(gs, old, strict=True):
        m, v = mean(o["betas"][0], m, g, k), mean(o["betas"][1], v, g * g, k)
        new.append([m, v, *(x.or_larger(v) for x in largest)])
    return new


def lamb(ps, gs, states, t, o, k):
    lr, (beta1, beta2) = o["lr"], o["betas"]
    corrected = o.get("bias_correction", True)
    step = lr / (1.0 - beta1**t) if corrected else lr
    factor = 1.0 / math.sqrt(1.0 - beta2**t) if corrected else 1.0
    states = moments([entering(p, g, o, k, decay=False) for p, g in zip(ps, gs, strict=True)], states, o, k)

    def steps(ratio, decay=True):
        w, s = k(ratio * (lr * o["weight_decay"])), k(ratio * step)
        us = [(s * m) / (v.root() * k(factor) + k(o["eps"])) for m, v in states]
        return [w * p + u for p, u in zip(ps, us, strict=True)] if decay else us

    ratio = 1.0
    if o.get("adapt", True):
        long, moves = length(ps), length(steps(1.0)) / lr
        if found := spoiled((long, moves), states, k):
            return found
        ratio = 1.0 if 0.0 in (long, moves) else long / moves
        ratio = 1.0 if o.get("trust_clip") and ratio > 1.0 else ratio
    return [p - u for p, u in zip(ps, steps(ratio, bool(o["weight_decay"])), strict=True)], states


def lars(ps, gs, states, t, o, k):
    mu, wd, rate = o.get("momentum", 0.0), o["weight_decay"], o["lr"]
    bare = [entering(p, g, o, k, decay=False) for p, g in zip(ps, gs, strict=True)]
    gs = [g + k(wd) * p if wd else g for p, g in zip(ps, bare, strict=True)]
    if o.get("adapt", True):
        joint = o.get("mode") == "optax"
        long, slope = length(ps), length(gs if joint else bare)
        if found := spoiled((long, slope), [[0.0]] * len(ps) if mu else [[]] * len(ps), k):
            return found
        below = (slope if joint else slope + wd * long) + o["eps"]
        rate *= 1.0 if 0.0 in (long, slope) else o["trust_coefficient"] * long / below
    if not mu:
        return [p - k(rate) * g for p, g in zip(ps, gs, strict=True)], [[] for _ in ps]
    vs = [k(mu) * (s[0] if s else k(0.0)) + k(rate) * g for s, g in zip(states, gs, strict=True)]
    us = [k(mu) * v + k(rate) * g for v, g in zip(vs, gs, strict=True)] if o.get("nesterov") else vs
    return [p - k(1.0) * u for p, u in zip(ps, us, strict=True)], [[v] for v in vs]


def novograd(ps, gs, states, t, o, k):
    beta1, beta2 = o["betas"]
    gs = [entering(p, g, o, k, decay=False) for p, g in zip(ps, gs, strict=True)]
    square, kept = length(gs) * length(gs), o.setdefault("kept", [])
    kept.append(square if not kept else beta2 * kept[-1] + (1.0 - beta2) * square)
    if found := spoiled((length(gs), kept[-1]), [[0.0]] * len(ps), k):
        return found
    below, share = k(math.sqrt(kept[-1]) + o["eps"]), k(1.0 - beta1 if o.get("grad_averaging") else 1.0)
    olds = [s[0] if s else k(0.0) for s in states]
    ms = [k(beta1) * m + share * (g / below + k(o["weight_decay"]) * p) for p, g, m in zip(ps, gs, olds, strict=True)]
    return [p - k(o["lr"]) * m for p, m in zip(ps, ms, strict=True)], [[m] for m in ms]


def agreeing(g, m, k):
    return (g > k(0.0) and m > k(0.0)) or (g < k(0.0) and m < k(0.0))


def careful(u, g, m, k):
    """Nothing where the signs of gradient and momentum differ; NaN comes out as it is."""
    return u if agreeing(g, m, k) else k(0.0) * u


def share_of(pairs, k):
    flags = [1.0 if agreeing(g, m, k) else 0.0 for g, m in pairs]
    share = length(flags) * length(flags) / len(flags)
    return 1.0 / max(share, 1e-3)


def adam_of_array(ps, gs, states, t, o, k, decoupled=False):
    lr, (beta1, beta2) = o["lr"], o["betas"]
    gs = [entering(p, g, o, k, decay=not decoupled) for p, g in zip(ps, gs, strict=True)]
    states = moments(gs, states, o, k)
    bc1, bc2 = 1.0 - beta1**t, 1.0 - beta2**t
    hat = o.get("eps_mode") == "hat"
    step, factor = (lr * math.sqrt(bc2) / bc1, 1.0) if hat else (lr / bc1, 1.0 / math.sqrt(bc2))
    clip, f = 1.0, 1.0
    if limit := {"rms": 1.0, None: 0.0}.get(o.get("update_clip"), o.get("update_clip")):
        roots = [s[1].root() * k(factor) for s in states]
        below = [k(o["eps"]) if r < k(o["eps"]) else r for r in roots]
        rms = length(g / d for g, d in zip(gs, below, strict=True)) / math.sqrt(len(gs))
        if found := spoiled((rms,), states, k):
            return found
        clip = 1.0 if rms <= limit else limit / rms
    if o.get("cautious"):
        f = share_of([(g, s[0]) for g, s in zip(gs, states, strict=True)], k)
    moves = []
    for p, g, (m, *vs) in zip(ps, gs, states, strict=True):
        u = (k(clip * step) * m) / (vs[-1].root() * k(factor) + k(o["eps"]))
        u = careful(k(f) * u, g, m, k) if o.get("cautious") else u
        wd = clip * (lr * o["weight_decay"])
        moves.append(p - (k(wd) * p + u) if decoupled and o["weight_decay"] else p - u)
    return moves, states


def adamw_of_array(ps, gs, states, t, o, k):
    return adam_of_array(ps, gs, states, t, o, k, decoupled=True)


def cautious_lion(ps, gs, states, t, o, k):
    gs = [entering(p, g, o, k, decay=False) for p, g in zip(ps, gs, strict=True)]
    olds = [s[0] if s else k(0.0) for s in states]
    ds = [mean(o["betas"][0], m, g, k) for m, g in zip(olds, gs, strict=True)]
    f = k(share_of(list(zip(gs, ds, strict=True)), k))
    us = [careful(f * signed(k(o["lr"]), d, k), g, d, k) for g, d in zip(gs, ds, strict=True)]
    new = [[mean(o["betas"][1], m, g, k)] for m, g in zip(olds, gs, strict=True)]
    return [moved(p, u, o, k) for p, u in zip(ps, us, strict=True)], new


# --- The classes and their options ---------------------------------------------------------------------------------

_PAIR, _TRIPLE = {"betas": (0.83, 0.977), "eps": 3e-5}, {"betas": (0.83, 0.977, 0.991), "eps": 3e-5}
_ADAM = tuple(
    _PAIR | {"eps": eps, "amsgrad": amsgrad, "eps_mode": mode}
    for eps, amsgrad, mode in product((3e-5, 0.0), (False, True), ("torch", "hat"))
)
_APART = {"decoupled_weight_decay": True}
_FREE = {"warmup_steps": 0, "r": 0.0, "weight_lr_power": 2.0}
_LATE = {"warmup_steps": 3, "r": 0.5, "weight_lr_power": 1.5}
_LINEAR = {"l1": 0.0, "l2": 0.0, "beta": 0.0, "initial_accumulator_value": 0.1}
_FALLING = {"lambd": 2e-3, "alpha": 0.7, "t0": 1.0}
_RMS = {"alpha": 0.93, "eps": 3e-5}

# Class -> its equation, and options that reach each of its rules and modes.
EQUATIONS = {
    fo.SGD: (sgd, (
        {}, _APART, {"momentum": 0.87}, {"momentum": 0.87} | _APART, {"momentum": 0.87, "dampening": 0.31},
        {"momentum": 0.87, "momentum_mode": "lr_inside"}, {"momentum": 0.87, "momentum_mode": "damped"},
        {"momentum": 0.87, "nesterov": True}, {"momentum": 0.87, "nesterov": True} | _APART,
        {"momentum": 0.87, "nesterov": True, "momentum_mode": "lr_inside"},
    )),
    fo.Adam: (adam, _ADAM),
    fo.AdamW: (adamw, _ADAM),
    fo.SignSGD: (signsgd, ({}, {"decay_mode": "fixed"})),
    fo.Signum: (signum, ({"momentum": 0.87},)),
    fo.Lion: (lion, ({"betas": (0.83, 0.977)},)),
    fo.Rprop: (rprop, (
        {"etas": (0.5, 1.25), "step_sizes": (3e-5, 0.7)}, {"etas": (0.3, 3.0), "step_sizes": (0.005, 0.05)},
    )),
    fo.ASGD: (asgd, (_FALLING, _FALLING | {"t0": 1e6, "alpha": 0.75})),
    fo.ScheduleFreeSGD: (schedule_free_sgd, ({"momentum": 0.87} | _FREE, {"momentum": 0.87} | _LATE)),
    fo.ScheduleFreeAdamW: (schedule_free_adamw, (_PAIR | _FREE, _PAIR | _LATE)),
    fo.RMSprop: (rmsprop, tuple(
        _RMS | {"eps_mode": mode, "centered": centered} | momentum
        for mode, centered, momentum in product(
            ("torch", "root"), (False, True), ({}, {"momentum": 0.87}, {"momentum": 0.87, "momentum_mode": "lr_inside"})
        )
    ) + tuple(  # the variance of gradients that stay is rounded below zero
        _RMS | {"alpha": 1e-5, "centered": True} | momentum for momentum in ({}, {"momentum": 0.87})
    )),
    fo.Adagrad: (adagrad, (
        {"lr_decay": 0.0, "eps": 3e-5, "initial_accumulator_value": 0.0},
        {"lr_decay": 0.3, "eps": 3e-5, "initial_accumulator_value": 0.2, "eps_mode": "root"},
    )),
    fo.Adadelta: (adadelta, ({"rho": 0.91, "eps": 3e-5},)),
    fo.Adamax: (adamax, (_PAIR, _PAIR | {"eps_mode": "keras"})),
    fo.FTRL: (ftrl, (_LINEAR, _LINEAR | {"l1": 0.07, "l2": 0.03, "beta": 0.2})),
    fo.NAdam: (nadam, tuple(
        _PAIR | {"momentum_decay": 4e-3, "mode": mode, "decoupled_weight_decay": apart}
        for mode, apart in product(("torch", "optax", "mlcommons"), (False, True))
    )),
    fo.RAdam: (radam, (_PAIR, _PAIR | _APART | {"decay_mode": "fixed"})),
    fo.AdaBelief: (adabelief, (_PAIR | {"eps_root": 7e-6},)),
    fo.Yogi: (yogi, (_PAIR | {"initial_accumulator_value": 1e-6},)),
    fo.ADOPT: (adopt, (_PAIR,)),
    fo.LaProp: (laprop, (_PAIR,)),
    fo.AdEMAMix: (ademamix, (_TRIPLE | {"alpha": 5.0, "warmup_steps": 0}, _TRIPLE | {"alpha": 5.0, "warmup_steps": 3})),
    fo.Adan: (adan, (_TRIPLE, _TRIPLE | {"mode": "optax"})),
}  # fmt: skip

_TRUST = {"trust_coefficient": 0.02, "eps": 3e-5}
_CAREFUL = tuple(
    _PAIR | options
    for options in (
        {"update_clip": "rms"}, {"update_clip": 0.4, "amsgrad": True}, {"cautious": True},
        {"cautious": True, "amsgrad": True, "eps_mode": "hat"}, {"cautious": True, "update_clip": 0.4},
        {"cautious": True, "update_clip": 0.4, "amsgrad": True},
    )
)  # fmt: skip

# The same of steps that depend on norms of arrays.
EQUATIONS_OF_ARRAYS = {
    fo.LAMB: (lamb, (
        _PAIR, _PAIR | {"trust_clip": True}, _PAIR | {"bias_correction": False}, _PAIR | {"adapt": False},
    )),
    fo.LARS: (lars, (
        {"momentum": 0.87} | _TRUST, {"momentum": 0.0, "mode": "optax"} | _TRUST,
        {"momentum": 0.87, "nesterov": True, "mode": "optax"} | _TRUST, {"momentum": 0.87, "adapt": False} | _TRUST,
    )),
    fo.NovoGrad: (novograd, (_PAIR, _PAIR | {"grad_averaging": True})),
    fo.Adam: (adam_of_array, _CAREFUL),
    fo.AdamW: (adamw_of_array, _CAREFUL),
    fo.Lion: (cautious_lion, ({"betas": (0.83, 0.977), "cautious": True},)),
}  # fmt: skip

_NO_DECAY = (fo.Rprop, fo.FTRL)
_PLAIN, _DECAYED, _UP = (
    ({"weight_decay": 0.0}, False),
    ({"weight_decay": 0.0456}, False),
    ({"weight_decay": 0.0456}, True),
)


def _cases(table, *kinds):
    return [
        (cls, {"lr": 0.0123, "maximize": up} | decay | options)
        for cls, (_, family) in table.items()
        for options in family
        for decay, up in ((({}, False), ({}, True)) if cls in _NO_DECAY else kinds)
    ]


OPTIONS = _cases(EQUATIONS, _PLAIN, _DECAYED, _UP)
OPTIONS_OF_ARRAYS = _cases(EQUATIONS_OF_ARRAYS, _PLAIN, _UP)
