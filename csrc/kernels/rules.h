/* The update rules; written by csrc/generate.py from fastoptim/rules/updates.py. Do not edit.
 *
 * Included once for each compute type, with T, SQRT and RULE(name) defined. `state` and `k` are the states and the
 * coefficients in the order in which the rule takes them. Build with -ffp-contract=off. */

RULE(scale)(T g, T s) { return s * g; }

RULE(coupled)(T g, T p, T wd) { return g + wd * p; }

RULE(plain)(T p, T u) { return p - u; }

RULE(decoupled)(T p, T u, T w) { return p - (w * p + u); }

RULE(sgd)(T g, T p, T *state, const T *k)
{
    const T c = k[0];
    (void)p;
    (void)state;
    T u = c * g;
    return u;
}

RULE(momentum)(T g, T p, T *state, const T *k)
{
    const T a = k[0], b = k[1], c = k[2];
    T v = state[0];
    (void)p;
    v = a * v + b * g;
    T u = c * v;
    state[0] = v;
    return u;
}

RULE(nesterov)(T g, T p, T *state, const T *k)
{
    const T a = k[0], b = k[1], c = k[2], e = k[3], f = k[4];
    T v = state[0];
    (void)p;
    v = a * v + b * g;
    T u = c * (e * v + f * g);
    state[0] = v;
    return u;
}

RULE(adam)(T g, T p, T *state, const T *k)
{
    const T b1 = k[0], c1 = k[1], b2 = k[2], c2 = k[3], step = k[4], r2 = k[5], eps = k[6];
    T m = state[0], v = state[1];
    (void)p;
    m = b1 * m + c1 * g;
    v = b2 * v + c2 * (g * g);
    T u = (step * m) / (SQRT(v) * r2 + eps);
    state[0] = m, state[1] = v;
    return u;
}

RULE(amsgrad)(T g, T p, T *state, const T *k)
{
    const T b1 = k[0], c1 = k[1], b2 = k[2], c2 = k[3], step = k[4], r2 = k[5], eps = k[6];
    T m = state[0], v = state[1], x = state[2];
    (void)p;
    m = b1 * m + c1 * g;
    v = b2 * v + c2 * (g * g);
    x = x >= v ? x : v;
    T u = (step * m) / (SQRT(x) * r2 + eps);
    state[0] = m, state[1] = v, state[2] = x;
    return u;
}

RULE(average)(T g, T p, T *state, const T *k)
{
    const T b = k[0];
    (void)state;
    T u = b * (p - g);
    return u;
}
