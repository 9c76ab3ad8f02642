/* The interface of the extension. cffi reads this file as it stands, so it holds no preprocessor lines; C files
 * include it through internal.h. */

/* Parameters that share a kernel and its scalars: factor of the gradient, coefficient of the decay, those of the rule. In
 * float64; kernels round them once to the compute type. */
typedef struct {
    int32_t rule;  /* index into the table of rules */
    int32_t decay; /* 0 none, 1 coupled, 2 decoupled */
    int64_t t;     /* the number of the step; kept where dithers need it */
    double scalars[18];
    double limit;  /* which no coefficient may reach: it would be infinite in a type that parameters are computed in */
    /* Of steps with gradients of some rows: whether all other rows are left as they are, whatever the rule; or whether the
     * rule leaves an element without a gradient as it is, where coefficients of these numbers (bits) are 1, and the sum of
     * some is above 0. */
    int32_t lazy, still;
    uint32_t ones, above;
} fo_run;

/* How a parameter is stored that is computed in float32 but has slots of fewer bits; see fastoptim/rules/codecs.py. */
typedef struct {
    uint64_t seed;
    int64_t number; /* of the parameter; seed, number, slot and step give the key of a dither */
    int64_t first;  /* the number of its first element within the whole parameter */
    int32_t nearest; /* whether numbers are rounded to nearest instead */
    int32_t master;  /* whether the last slot is a float32 copy of the parameter, which is stepped in its place */
    int32_t squares; /* bit i: state i is a mean of squares, stored as its root */
    int32_t low;     /* whether any of this matters: 0 for a parameter whose slots are all of its own type */
} fo_stored;

/* The gradient of some rows of a parameter; see rows.c. */
typedef struct {
    int64_t count;      /* how many indices there are; below 0: the gradient is a whole array */
    int64_t length;     /* elements of a row */
    const void *values; /* a row for each index */
    void *owner;        /* of these: an object of Python's, for bind.c */
    int64_t *row, *at;  /* the indices in increasing order, and which of `values` are theirs */
    void *memory;       /* that holds these */
} fo_rows;

/* One parameter. Slot 0 is the parameter, 1 the gradient, 2.. the states, then the scales of those that are float8, then
 * the master copy. Each slot has a storage type: 0 float32, 1 float64, 2 bfloat16, 3 float16, 4 float8, 5 scales. The
 * addresses are those of the last step and are read anew at every step. */
typedef struct {
    int64_t n;
    fo_stored stored;
    fo_rows rows;
    int64_t first_block;
    int32_t run;
    int32_t dimensions;
    const int64_t *shape;
    int8_t storage[11];
    int8_t slots;
    int32_t state_order; /* the orders in memory that all states share, as NumPy's flags */
    void *data[11];
} fo_param;

/* What pace.c knows about one job. Times are in ns. */
typedef struct {
    uint64_t runs;         /* so far */
    double serial_ns;      /* time of a run on one thread; 0 until it is known */
    double credit_ns;      /* what threads have gained over that; below 0 what they have lost */
    double serial_only_ns; /* to be spent serially before the next trial of threads; none if not above 0 */
    double backoff;        /* how many times their next loss that will be */
} fo_pace;

/* A list of parameters that is stepped again and again: what is expected of its arrays, and how it is cut into chunks.
 * Chunk i reaches from element chunk_start[i] of parameter chunk_param[i] to the beginning of chunk i + 1. */
typedef struct {
    int32_t run_count;
    int32_t threads;
    int32_t disjoint; /* bind.c: which of the addresses are known not to overlap */
    int64_t param_count;
    int64_t state_count;
    int64_t chunk_count;
    int64_t block_count;
    int64_t written_count;
    uint64_t least_gradient; /* in bytes; empty ones do not count */
    double step_bytes;
    double norm_bytes;
    double measure_bytes;
    fo_pace step_pace[2]; /* after idle times, and in bursts of steps */
    fo_pace norm_pace[2];
    fo_pace rows_pace[2]; /* of steps with gradients of some rows */
    double rows_bytes;    /* the traffic of the last of these */
    fo_run *runs;
    fo_param *params;
    int64_t *shapes;
    int64_t *chunk_param;
    int64_t *chunk_start;
    double *block_sums; /* of the last norm or measure: block_count for each of FO_TERMS */
    double *tree;
    uintptr_t *written; /* (low, high) of what a step writes, sorted */
} fo_plan;

/* plan.c: the step without Python. `storage` holds 11 numbers for each parameter (-1 where there is no
 * slot), `shapes` dimensions[i]. */
fo_plan *fo_plan_new(int32_t run_count, const fo_run *runs, int64_t param_count, const int32_t *param_run,
                     const int8_t *storage, const fo_stored *stored, const int32_t *dimensions, const int64_t *shapes,
                     int32_t threads);
void fo_plan_free(fo_plan *plan);
void fo_plan_apply(fo_plan *plan); /* with no gradients of some rows */
double fo_plan_sum_squares(fo_plan *plan, double grad_scale, double k);

/* plan.c: for each parameter, sums of (k * term)**2 over each term of what its run measures, one after the other: sums has
 * room for FO_TERMS of them each. Returns how many they are. Nothing else is written. */
int64_t fo_plan_measure(fo_plan *plan, double k, double *sums);

/* pool.c, for tests: spread every job of several chunks over threads, whether that pays or not. */
void fo_pool_always(int32_t on);

/* pace.c: whether a job runs on threads. Used by pool.c; they stand here so that tests can call them on a fake clock. */
int fo_pace_worth_joining(double bytes); /* with workers that spin */
int fo_pace_worth_waking(double bytes);  /* with workers that sleep */
int fo_pace_in_burst(int64_t idle_ns, int spinning); /* time since the last job; how many workers spin */
int fo_pace_chooses_threads(const fo_pace *pace, int in_burst, double bytes);
/* Each run is told to one of these. `waited_ns`: of `elapsed_ns`, what the caller waited for the workers at the end. */
void fo_pace_observe_serial(fo_pace *pace, double elapsed_ns);
void fo_pace_observe_threaded(fo_pace *pace, double elapsed_ns, double waited_ns);

/* bind.c: the plan as Python functions. Objects are given by their addresses. fo_set_up comes first: `types`, which stays, is
 * the tuple (ndarray, memmap, Rows, "indices", "values", "lazy", "mask"), and `head` the size of a tuple without its
 * items; 0 if they are not found behind it. fo_functions takes the plan over and appends to a list
 *   step(params, grads, states, rows, scale = 1.0) -> True, or False with nothing touched if an array is not plain, not as
 *     expected, or overlaps another; tuples of arrays (grads may be a list, and hold Rows), and a tuple with one tuple of
 *     floats (scale, decay, coefficients) for each run, and behind them the number of the step where dithers need it; or
 *     Adam's (see bind.c), which stays the same;
 *   measure(params, grads, states, rows, k) -> list of floats, what fo_plan_measure finds; None where step would say False;
 *   sum_squares(grads, grad_scale, k) -> float, or None if a gradient is not plain and C-ordered;
 *   step_array(p, g, states, row, dict, names, values) -> as step, for a plan of one parameter and one array of any shape,
 *     float32 or float64; False, too, if it has FO_ALONE_BELOW bytes or more, or if the dict has not
 *     exactly these values under these names (None where it has none). It is not counted.
 * `steps` grows by one with each step that was applied; it lies in the object `counter`, which the functions keep alive. */
enum { FO_ALONE_BELOW = 65536 }; /* bytes: one thread steps a smaller array, in some 10 us, for which others can wait */
int fo_set_up(uintptr_t ndarray, uintptr_t memmap, uintptr_t types, size_t head);
void fo_set_types(int32_t bfloat16, int32_t float8); /* NumPy's numbers of these dtypes, before a plan has them */
int fo_functions(fo_plan *plan, uintptr_t counter, int64_t *steps, uintptr_t functions);

/* kernels.c: the tables that were compiled in. Names are NULL past the end. */
const char *fo_rule_name(int32_t rule);
int32_t fo_rule_states(int32_t rule);
int32_t fo_rule_coefficients(int32_t rule);
int32_t fo_rule_terms(int32_t rule); /* of a measure; 0 for an update rule */
const char *fo_isa_name(int32_t isa);
int fo_isa_select(int32_t isa); /* 0 if this machine lacks it */
int32_t fo_isa_selected(void);
const char *fo_compiler(void);

/* cpu.c: the best instruction set of this machine, and the x86 one that these registers allow (0 baseline, 1 avx2,
 * 2 avx512). */
int32_t fo_cpu_isa(void);
int32_t fo_x86_isa(uint32_t max_leaf, uint32_t leaf1_ecx, uint32_t leaf7_ebx, uint64_t xcr0);

/* cpu.c: how this thread rounds and whether it keeps subnormal numbers. */
typedef uint64_t fo_float_mode;
fo_float_mode fo_float_mode_set_default(void); /* round to nearest, subnormals kept; returns what was there */
void fo_float_mode_restore(fo_float_mode mode);
