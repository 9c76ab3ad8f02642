/* Reads NumPy arrays through NumPy's public structures: a thousand of them in microseconds, checked at every step, so that
 * no address is kept from one step to the next. Only arrays of plain layout pass; the Python side handles or refuses the
 * others. */
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#include <Python.h>

#include <numpy/ndarraytypes.h>

#include "internal.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static PyTypeObject *ndarray_type, *memmap_type, *rows_type;
static PyObject *const *rows_fields; /* the names of what Rows hold: indices, values, lazy */
static PyObject *mask;               /* the name of what masked arrays have */
static size_t tuple_head;

/* A call for each item would cost as much as checking it. */
static PyObject *const *items_of(PyObject *tuple) { return (PyObject *const *)((const char *)tuple + tuple_head); }

int fo_set_up(uintptr_t ndarray, uintptr_t memmap, uintptr_t types, size_t head)
{
    ndarray_type = (PyTypeObject *)ndarray;
    memmap_type = (PyTypeObject *)memmap;
    tuple_head = head;
    PyObject *const *items = items_of((PyObject *)types);
    if (items[0] != (PyObject *)ndarray || items[1] != (PyObject *)memmap)
        return 0;
    rows_type = (PyTypeObject *)items[2];
    rows_fields = items + 3, mask = items[6];
    return 1;
}

#if defined(Py_GIL_DISABLED)
typedef atomic_int fo_flag;
#else
typedef int fo_flag;
#endif

/* NumPy's numbers of the dtypes; those of ml_dtypes are known when it is loaded. */
static int type_numbers[FO_STORAGE_TYPES] = {NPY_FLOAT, NPY_DOUBLE, -1, NPY_HALF, -1, NPY_FLOAT};

void fo_set_types(int32_t bfloat16, int32_t float8)
{
    type_numbers[FO_BFLOAT16] = bfloat16;
    type_numbers[FO_FLOAT8] = float8;
}

/* What the functions for Python hang on to: a plan; the count of its steps, and the object that it lies in; and the tuple
 * of states of the last step, if all are views of other memory, which cannot be resized: of them only addresses need to
 * be read again. */
typedef struct {
    fo_plan *plan;
    _Atomic int64_t *steps; /* others may read it at any time; whoever steps is alone in writing */
    PyObject *counter, *views;
    fo_flag busy; /* a thread is in one of the functions: what it binds must not be another's */
    int rows;     /* whether some of the gradients that are bound are of some rows */
} bound;

/* Whoever is refused takes the way without a plan, which is for Python to guard. With the interpreter's lock, which is held
 * here, the flag need not be atomic. */
#if defined(Py_GIL_DISABLED)
static int begin(bound *b) { return !atomic_exchange_explicit(&b->busy, 1, memory_order_acquire); }
static void end(bound *b) { atomic_store_explicit(&b->busy, 0, memory_order_release); }
#else
static int begin(bound *b) { return !b->busy && (b->busy = 1); }
static void end(bound *b) { b->busy = 0; }
#endif

/* Of a subclass nothing is asked but whether it masks, and that only where asking runs no other code. */
static int is_array(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    return type == ndarray_type || type == memmap_type ||
           (PyType_IsSubtype(type, ndarray_type) && Py_TYPE((PyObject *)type) == &PyType_Type &&
            !PyObject_HasAttr((PyObject *)type, mask));
}

/* Binds one slot: -1 if the array is not as expected, else whether its address is another than at the last step. `order`
 * keeps the contiguity flags that all arrays share. */
static int bind(PyObject *object, fo_param *param, int slot, int *order)
{
    if (!is_array(object))
        return -1;
    PyArrayObject *array = (PyArrayObject *)object;
    const PyArray_Descr *dtype = PyArray_DESCR(array);
    int flags = PyArray_FLAGS(array), needed = NPY_ARRAY_ALIGNED | (slot == SLOT_GRAD ? 0 : NPY_ARRAY_WRITEABLE);
    if (slot == SLOT_GRAD && param->storage[SLOT_PARAM] >= FO_BFLOAT16) /* of the parameter's dtype, or float32 */
        param->storage[slot] = dtype->type_num == NPY_FLOAT ? FO_FLOAT32 : param->storage[SLOT_PARAM];
    int storage = param->storage[slot];
    const int64_t blocks = (param->n + FO_BLOCK - 1) / FO_BLOCK, *shape = storage == FO_SCALES ? &blocks : param->shape;
    int dimensions = storage == FO_SCALES ? 1 : param->dimensions;
    if (dtype->type_num != type_numbers[storage] || dtype->byteorder == NPY_OPPBYTE || (flags & needed) != needed ||
        PyArray_NDIM(array) != dimensions)
        return -1;
    for (int i = 0; i < dimensions; i++)
        if (PyArray_DIM(array, i) != shape[i])
            return -1;
    *order &= flags;
    void *data = PyArray_DATA(array);
    int moved = data != param->data[slot];
    param->data[slot] = data;
    return moved;
}

static int is_plain(PyObject *object, int needed)
{
    return is_array(object) &&
           PyArray_DESCR((PyArrayObject *)object)->byteorder != NPY_OPPBYTE &&
           (PyArray_FLAGS((PyArrayObject *)object) & needed) == needed;
}

static int take_rows(fo_param *param, PyObject *of_rows, PyObject *gradients)
{
    enum { NEEDED = NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED };
    if (!of_rows || !gradients || !is_plain(of_rows, NEEDED) || !is_plain(gradients, NEEDED))
        return 0;
    PyArrayObject *indices = (PyArrayObject *)of_rows, *values = (PyArrayObject *)gradients;
    int type = PyArray_DESCR(indices)->type_num;
    int width = type == NPY_INT ? sizeof(int) : type == NPY_LONG ? sizeof(long) : type == NPY_LONGLONG ? 8 : 0;
    int storage = param->stored.low ? FO_FLOAT32 : param->storage[SLOT_PARAM];
    if (!width || PyArray_DESCR(values)->type_num != type_numbers[storage] || PyArray_NDIM(indices) != 1 ||
        param->dimensions < 1 || PyArray_NDIM(values) != param->dimensions || PyArray_DIM(values, 0) != PyArray_DIM(indices, 0))
        return 0;
    for (int i = 1; i < param->dimensions; i++)
        if (PyArray_DIM(values, i) != param->shape[i])
            return 0;
    param->storage[SLOT_GRAD] = (int8_t)storage;
    param->data[SLOT_GRAD] = PyArray_DATA(values);
    return fo_rows_take(param, width == 8, PyArray_DATA(indices), PyArray_DATA(values), PyArray_DIM(indices, 0));
}

/* Binds the gradient of some rows, which is let go of by drop_rows; -1 if it is not as expected, or not for such a run. */
static int bind_rows(bound *b, PyObject *given, fo_param *param, const fo_run *run)
{
    PyObject *indices = PyObject_GetAttr(given, rows_fields[0]), *values = PyObject_GetAttr(given, rows_fields[1]);
    PyObject *lazy = PyObject_GetAttr(given, rows_fields[2]);
    int taken = (lazy == Py_True || lazy == Py_False) && take_rows(param, indices, values);
    param->rows.owner = values;
    b->rows = 1;
    Py_XDECREF(indices), Py_XDECREF(lazy);
    return taken && (!run || fo_rows_suit(param, run, lazy == Py_True)) ? 1 : -1;
}

static void drop_rows(bound *b)
{
    for (int64_t i = 0; b->rows && i < b->plan->param_count; i++) {
        Py_XDECREF(b->plan->params[i].rows.owner);
        fo_rows_drop(&b->plan->params[i]);
    }
    b->rows = 0;
}

static uintptr_t low_of(const fo_param *param, int slot) { return (uintptr_t)param->data[slot]; }

static uintptr_t high_of(const fo_param *param, int slot)
{
    int64_t n = slot == SLOT_GRAD && param->rows.count >= 0 ? param->rows.count * param->rows.length : param->n;
    return low_of(param, slot) + fo_bytes(param->storage[slot], n);
}

static int by_low(const void *a, const void *b)
{
    uintptr_t x = *(const uintptr_t *)a, y = *(const uintptr_t *)b;
    return (x > y) - (x < y);
}

/* Sorts what a step writes; 0 if some of it overlaps. Arrays with no room for a gradient between them become one range. */
static int sort_written(fo_plan *plan, uint64_t least_gradient)
{
    uintptr_t *written = plan->written;
    int64_t count = 0, last = 0;
    for (int64_t e = 0; e < plan->param_count; e++) {
        const fo_param *param = &plan->params[e];
        for (int slot = 0; slot < param->slots; slot++)
            if (slot != SLOT_GRAD && param->n > 0) {
                written[2 * count] = low_of(param, slot);
                written[2 * count++ + 1] = high_of(param, slot);
            }
    }
    qsort(written, (size_t)count, 2 * sizeof *written, by_low);
    for (int64_t i = 1; i < count; i++) {
        uintptr_t low = written[2 * i], high = written[2 * i + 1], before = written[2 * last + 1];
        if (low < before)
            return 0;
        if (low - before >= least_gradient)
            written[2 * ++last] = low;
        written[2 * last + 1] = high;
    }
    plan->written_count = count ? last + 1 : 0;
    return 1;
}

static int gradient_overlaps(const fo_plan *plan, const fo_param *param)
{
    uintptr_t low = low_of(param, SLOT_GRAD), high = high_of(param, SLOT_GRAD);
    int64_t from = 0, to = plan->written_count; /* the first written range that ends beyond low */
    while (from < to) {
        int64_t middle = (from + to) / 2;
        if (plan->written[2 * middle + 1] > low)
            to = middle;
        else
            from = middle + 1;
    }
    return param->n > 0 && from < plan->written_count && plan->written[2 * from] < high;
}

static int some_gradient_overlaps(const fo_plan *plan)
{
    for (int64_t e = 0; e < plan->param_count; e++)
        if (gradient_overlaps(plan, &plan->params[e]))
            return 1;
    return 0;
}

enum { ORDERS = NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_F_CONTIGUOUS };

/* Which of `param->data` are known not to overlap. */
enum { NONE, WRITTEN, ALL };

/* Binds a parameter's states; see `bind`. Of states known to be unchanged views only the addresses are read again: a
 * thousand headers would have to come from memory. */
static int bind_states(PyObject *const *state, fo_param *param, int unchanged, int *order, int *owners)
{
    int moved = 0;
    for (int slot = SLOT_STATE; unchanged && slot < param->slots; slot++)
        unchanged = PyArray_DATA((PyArrayObject *)state[slot - SLOT_STATE]) == param->data[slot];
    if (!unchanged) {
        param->state_order = ORDERS;
        for (int slot = SLOT_STATE; slot < param->slots; slot++) {
            PyObject *x = state[slot - SLOT_STATE];
            moved |= bind(x, param, slot, &param->state_order);
            *owners |= moved >= 0 && PyArray_CHKFLAGS((PyArrayObject *)x, NPY_ARRAY_OWNDATA);
        }
    }
    *order &= param->state_order;
    return moved;
}

/* Binds everything; 0 if an array is not as expected or overlaps another. Whether gradients may be of some rows is said. */
static int bind_all(bound *b, int views_unchanged, PyObject *const *p, PyObject *const *g, PyObject *states, int may_be_rows)
{
    fo_plan *plan = b->plan;
    int64_t count = plan->param_count;
    if (PyTuple_Size(states) != plan->state_count)
        return 0;
    PyObject *const *state = items_of(states);
    int disjoint = plan->disjoint, moved = 0, grad_moved = 0, owners = 0;
    plan->disjoint = NONE;
    for (int64_t i = 0; i < count; i++) {
        fo_param *param = &plan->params[i];
        /* dithers and blocks, those of sums too, count in C order */
        int order = param->stored.low || fo_rule_terms(plan->runs[param->run].rule) ? NPY_ARRAY_C_CONTIGUOUS : ORDERS;
        moved |= bind(p[i], param, SLOT_PARAM, &order);
        if (may_be_rows && Py_TYPE(g[i]) == rows_type) {
            grad_moved |= bind_rows(b, g[i], param, &plan->runs[param->run]);
            order &= NPY_ARRAY_C_CONTIGUOUS;
        } else {
            grad_moved |= bind(g[i], param, SLOT_GRAD, &order);
        }
        moved |= bind_states(state, param, views_unchanged, &order, &owners);
        if ((moved | grad_moved) < 0 || !order)
            return 0;
        state += param->slots - SLOT_STATE;
    }
    if (moved || b->rows)
        disjoint = NONE;
    else if (grad_moved && disjoint == ALL)
        disjoint = WRITTEN;
    if ((disjoint < WRITTEN && !sort_written(plan, b->rows ? 1 : plan->least_gradient)) ||
        (disjoint < ALL && some_gradient_overlaps(plan)))
        return 0;
    plan->disjoint = b->rows ? NONE : ALL;
    if (!owners && count > 1) /* one array's are read as quickly, and need not be kept alive */
        b->views = Py_NewRef(states);
    return 1;
}

/* Python's own: another library's power may differ in the last bit. */
static double power(double base, double exponent)
{
    PyObject *x = PyFloat_FromDouble(base), *y = PyFloat_FromDouble(exponent);
    PyObject *found = x && y ? PyNumber_Power(x, y, Py_None) : 0;
    double result = found ? PyFloat_AsDouble(found) : 0;
    Py_XDECREF(x), Py_XDECREF(y), Py_XDECREF(found);
    return result;
}

#include "kernels/adam.h"

enum { ADAM_ARGUMENTS = 5, ADAM_COEFFICIENTS = 7 };

/* A tuple of floats: scale, decay, coefficients. Or one that serves all steps of a plan: scale, decay, the arguments of
 * adam_coefficients without t, the step count that the plan began with. 0 if a coefficient is no number in the type that
 * it is needed in. */
static int read_row(fo_run *run, PyObject *row, int64_t steps)
{
    int count = 2 + fo_rule_coefficients(run->rule);
    Py_ssize_t size = PyTuple_Size(row);
    int serves_all = size == 2 + ADAM_ARGUMENTS + 1 && count == 2 + ADAM_COEFFICIENTS;
    if (serves_all)
        count = 2 + ADAM_ARGUMENTS;
    if (size != count && size != count + 1)
        return 0;
    run->t = size > count ? PyLong_AsLongLong(items_of(row)[count]) : 0;
    for (int i = 0; i < count; i++)
        run->scalars[i] = PyFloat_AsDouble(items_of(row)[i]);
    if (serves_all) {
        const double *x = run->scalars + 2, lr = x[0], beta1 = x[1], beta2 = x[2], eps = x[3];
        run->t += steps + 1;
        adam_coefficients(lr, beta1, beta2, eps, x[4] != 0, (double)run->t, run->scalars + 2);
        count = 2 + ADAM_COEFFICIENTS;
    }
    int fits = 1;
    for (int i = 1; i < count; i++)
        fits &= run->scalars[i] < run->limit && run->scalars[i] > -run->limit;
    return fits && !PyErr_Occurred();
}

/* One such tuple per run. Gradients are scaled besides. */
static int read_rows(const bound *b, PyObject *rows, PyObject *scale)
{
    fo_plan *plan = b->plan;
    double factor = scale ? PyFloat_AsDouble(scale) : 1;
    int64_t steps = atomic_load_explicit(b->steps, memory_order_relaxed);
    if (PyTuple_Size(rows) != plan->run_count)
        return 0;
    for (int32_t r = 0; r < plan->run_count; r++) {
        if (!read_row(&plan->runs[r], items_of(rows)[r], steps))
            return 0;
        plan->runs[r].scalars[0] *= factor;
    }
    return 1;
}

static const char CAPSULE[] = "fastoptim plan";

static void release(PyObject *capsule)
{
    bound *b = PyCapsule_GetPointer(capsule, CAPSULE);
    fo_plan_free(b->plan);
    Py_DECREF(b->counter);
    Py_XDECREF(b->views);
    free(b);
}

/* Smaller work than this is over before another thread could make use of the interpreter. */
static const double RELEASE_BYTES = 64e3;

/* Reads and binds what a step takes: params, grads, states and rows. 0 if the arrays need another way. */
static int bind_step(bound *b, const PyObject *views, PyObject *const *args, PyObject *grads, PyObject *scale, int may_be_rows)
{
    fo_plan *plan = b->plan;
    int plain = grads && PyTuple_CheckExact(grads) && PyTuple_Size(grads) == plan->param_count &&
                PyTuple_Size(args[0]) == plan->param_count && fo_rounds_to_nearest() && read_rows(b, args[3], scale) &&
                bind_all(b, views == args[2], items_of(args[0]), items_of(grads), args[2], may_be_rows);
    if (!plain)
        PyErr_Clear();
    return plain;
}

static void apply(fo_plan *plan, int rows)
{
    if (rows)
        fo_plan_apply_rows(plan);
    else
        fo_plan_apply(plan);
}

static PyObject *step(PyObject *capsule, PyObject *const *args, Py_ssize_t count)
{
    bound *b = PyCapsule_GetPointer(capsule, CAPSULE);
    if (!b || (count != 4 && count != 5))
        return PyErr_Format(PyExc_TypeError, "a step takes params, grads, states, rows and a scale");
    if (!begin(b))
        return Py_NewRef(Py_False);
    fo_plan *plan = b->plan;
    PyObject *views = b->views; /* given up at the end: what goes with it may run code that steps this very plan */
    b->views = 0;
    PyObject *result = Py_False, *grads = PyList_CheckExact(args[1]) ? PyList_AsTuple(args[1]) : Py_NewRef(args[1]);
    if (!bind_step(b, views, args, grads, count > 4 ? args[4] : 0, 1))
        goto done;
    if ((b->rows ? fo_plan_rows_bytes(plan) : plan->step_bytes) < RELEASE_BYTES) {
        apply(plan, b->rows);
    } else {
        Py_BEGIN_ALLOW_THREADS
        apply(plan, b->rows);
        Py_END_ALLOW_THREADS
    }
    /* Counted here, so that Ctrl-C right after the step finds it counted. */
    atomic_store_explicit(b->steps, atomic_load_explicit(b->steps, memory_order_relaxed) + 1, memory_order_relaxed);
    result = Py_True;
done:
    drop_rows(b);
    end(b);
    Py_XDECREF(grads);
    Py_XDECREF(views);
    return Py_NewRef(result);
}

/* Makes the plan's only parameter one of the shape and dtype of `object`; 0 if it is none, empty or too large. */
static int take_shape(fo_plan *plan, PyObject *object)
{
    if (!is_array(object))
        return 0;
    PyArrayObject *array = (PyArrayObject *)object;
    fo_param *param = plan->params;
    int type = PyArray_DESCR(array)->type_num;
    int8_t storage = type == NPY_DOUBLE ? FO_FLOAT64 : FO_FLOAT32; /* `bind` looks for other types */
    double bytes = (double)fo_bytes(storage, 1); /* an integer might overflow */
    int64_t n = 1;
    param->dimensions = PyArray_NDIM(array), param->shape = (const int64_t *)PyArray_DIMS(array);
    for (int i = 0; i < param->dimensions; i++)
        bytes *= (double)param->shape[i];
    if (bytes == 0 || bytes >= FO_ALONE_BELOW)
        return 0;
    for (int i = 0; i < param->dimensions; i++)
        n *= param->shape[i];
    if (n != param->n || storage != param->storage[SLOT_PARAM])
        plan->disjoint = NONE;
    param->n = n;
    plan->runs->limit = fo_limit(storage);
    plan->least_gradient = fo_bytes(storage, n);
    memset(param->storage, storage, sizeof param->storage);
    return 1;
}

/* Whether the variables in `names` have the very `values` of a dict, None where there is none. */
static int same_values(PyObject *dict, PyObject *names, PyObject *values)
{
    for (Py_ssize_t i = 0, count = PyTuple_Size(names); i < count; i++) {
        PyObject *value = PyDict_GetItemWithError(dict, items_of(names)[i]);
        if ((value ? value : Py_None) != items_of(values)[i])
            return 0;
    }
    return 1;
}

/* Nothing here runs other code or gives the interpreter's lock away, so that all threads may share the plan. */
static PyObject *step_array(PyObject *capsule, PyObject *const *args, Py_ssize_t count)
{
    bound *b = PyCapsule_GetPointer(capsule, CAPSULE);
    if (!b || count != 7)
        return PyErr_Format(PyExc_TypeError, "step_array takes p, g, states, row, a dict, names and values");
    if (!begin(b))
        return Py_NewRef(Py_False);
    int plain = fo_rounds_to_nearest() && same_values(args[4], args[5], args[6]) && take_shape(b->plan, args[0]) &&
                read_row(b->plan->runs, args[3], 0) && bind_all(b, 0, args, args + 1, args[2], 0);
    if (plain)
        fo_plan_apply(b->plan);
    PyErr_Clear();
    end(b);
    return PyBool_FromLong(plain);
}

static PyObject *sum_squares(PyObject *capsule, PyObject *const *args, Py_ssize_t count)
{
    bound *b = PyCapsule_GetPointer(capsule, CAPSULE);
    if (!b || count != 3)
        return PyErr_Format(PyExc_TypeError, "sum_squares takes grads, grad_scale and k");
    if (!begin(b))
        return Py_NewRef(Py_None);
    fo_plan *plan = b->plan;
    double grad_scale = PyFloat_AsDouble(args[1]), k = PyFloat_AsDouble(args[2]), sum = 0;
    int plain = fo_rounds_to_nearest() && PyTuple_Size(args[0]) == plan->param_count;
    PyObject *const *g = items_of(args[0]);
    for (int64_t i = 0; plain && i < plan->param_count; i++) {
        fo_param *param = &plan->params[i];
        int order = NPY_ARRAY_C_CONTIGUOUS;
        int moved = Py_TYPE(g[i]) == rows_type ? bind_rows(b, g[i], param, 0) : bind(g[i], param, SLOT_GRAD, &order);
        plain = moved >= 0 && order;
        if (moved && plan->disjoint == ALL)
            plan->disjoint = WRITTEN;
    }
    if (!plain) {
        PyErr_Clear();
    } else {
        Py_BEGIN_ALLOW_THREADS
        sum = b->rows ? fo_plan_rows_squares(plan, grad_scale, k) : fo_plan_sum_squares(plan, grad_scale, k);
        Py_END_ALLOW_THREADS
    }
    drop_rows(b);
    end(b);
    return plain ? PyFloat_FromDouble(sum) : Py_NewRef(Py_None);
}

static PyObject *measure(PyObject *capsule, PyObject *const *args, Py_ssize_t count)
{
    bound *b = PyCapsule_GetPointer(capsule, CAPSULE);
    if (!b || count != 5)
        return PyErr_Format(PyExc_TypeError, "measure takes params, grads, states, rows and k");
    double k = PyFloat_AsDouble(args[4]);
    if (!begin(b))
        return Py_NewRef(Py_None);
    PyObject *views = b->views, *result = 0; /* as in step */
    b->views = 0;
    double *sums = malloc((size_t)(b->plan->param_count + 1) * FO_TERMS * sizeof *sums);
    int64_t found = -1;
    if (sums && bind_step(b, views, args, args[1], 0, 0)) {
        Py_BEGIN_ALLOW_THREADS
        found = fo_plan_measure(b->plan, k, sums);
        Py_END_ALLOW_THREADS
    }
    end(b);
    result = found < 0 ? Py_NewRef(Py_None) : PyList_New((Py_ssize_t)found);
    for (int64_t i = 0; result && i < found; i++) {
        PyObject *sum = PyFloat_FromDouble(sums[i]);
        if (!sum || PyList_SetItem(result, (Py_ssize_t)i, sum)) {
            Py_DECREF(result);
            result = 0;
        }
    }
    free(sums);
    Py_XDECREF(views);
    return result;
}

int fo_functions(fo_plan *plan, uintptr_t counter, int64_t *steps, uintptr_t functions)
{
    static PyMethodDef methods[] = {
        {"step", (PyCFunction)(void (*)(void))step, METH_FASTCALL, 0},
        {"sum_squares", (PyCFunction)(void (*)(void))sum_squares, METH_FASTCALL, 0},
        {"step_array", (PyCFunction)(void (*)(void))step_array, METH_FASTCALL, 0},
        {"measure", (PyCFunction)(void (*)(void))measure, METH_FASTCALL, 0},
    };
    PyGILState_STATE gil = PyGILState_Ensure();
    bound *b = malloc(sizeof *b);
    PyObject *capsule = b ? PyCapsule_New(b, CAPSULE, release) : 0;
    int made = capsule != 0;
    if (made) {
        *b = (bound){.plan = plan, .steps = (_Atomic int64_t *)steps, .counter = (PyObject *)counter};
        Py_INCREF(b->counter);
    } else {
        free(b);
        fo_plan_free(plan);
    }
    for (int i = 0; made && i < 4; i++) {
        PyObject *function = PyCFunction_New(&methods[i], capsule);
        made = function && PyList_Append((PyObject *)functions, function) == 0;
        Py_XDECREF(function);
    }
    Py_XDECREF(capsule);
    PyErr_Clear();
    PyGILState_Release(gil);
    return made;
}
