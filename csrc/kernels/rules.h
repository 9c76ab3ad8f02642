/* The law, mirrored: read it beside fastoptim/rules.py, whose order and parentheses it keeps.
 *
 * Included once for each compute type, with T, SQRT and RULE(name) defined. `state` and `k` are the states and the
 * coefficients in the order in which the law takes them. Build with -ffp-contract=off. */

RULE(scale)(T g, T s) { return s * g; }

RULE(coupled)(T p, T g, T wd) { return g + wd * p; }

RULE(decoupled)(T p, T keep) { return p * keep; }

RULE(sgd)(T p, T g, T *state, const T *k)
{
    const T c = k[0];
    (void)state;
    p = p - c * g;
    return p;
}

RULE(momentum)(T p, T g, T *state, const T *k)
{
    const T a = k[0], b = k[1], c = k[2];
    T v = state[0];
    v = a * v + b * g;
    p = p - c * v;
    state[0] = v;
    return p;
}

RULE(nesterov)(T p, T g, T *state, const T *k)
{
    const T a = k[0], b = k[1], c = k[2], e = k[3], f = k[4];
    T v = state[0];
    v = a * v + b * g;
    p = p - c * (e * v + f * g);
    state[0] = v;
    return p;
}

RULE(adam)(T p, T g, T *state, const T *k)
{
    const T b1 = k[0], c1 = k[1], b2 = k[2], c2 = k[3], step = k[4], r2 = k[5], eps = k[6];
    T m = state[0], v = state[1];
    m = b1 * m + c1 * g;
    v = b2 * v + c2 * (g * g);
    p = p - (step * m) / (SQRT(v) * r2 + eps);
    state[0] = m, state[1] = v;
    return p;
}

RULE(amsgrad)(T p, T g, T *state, const T *k)
{
    const T b1 = k[0], c1 = k[1], b2 = k[2], c2 = k[3], step = k[4], r2 = k[5], eps = k[6];
    T m = state[0], v = state[1], x = state[2];
    m = b1 * m + c1 * g;
    v = b2 * v + c2 * (g * g);
    x = x >= v ? x : v;
    p = p - (step * m) / (SQRT(x) * r2 + eps);
    state[0] = m, state[1] = v, state[2] = x;
    return p;
}
