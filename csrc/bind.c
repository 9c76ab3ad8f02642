/* Reads NumPy arrays through NumPy's public structures: a thousand of them in microseconds, checked at every step, so that
 * no address is kept from one step to the next. Only plain arrays pass; the Python side handles or refuses the others. */
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#include <Python.h>

#include <numpy/ndarraytypes.h>

#include "internal.h"

#include <stdlib.h>

static PyTypeObject *ndarray_type, *memmap_type;

void fo_array_types(uintptr_t ndarray, uintptr_t memmap)
{
    ndarray_type = (PyTypeObject *)ndarray;
    memmap_type = (PyTypeObject *)memmap;
}

/* The address of an array that is as expected, else NULL. `order` keeps the contiguity flags that all arrays share. */
static void *address(PyObject *object, const fo_entry *entry, int slot, int *order)
{
    if (!object || (Py_TYPE(object) != ndarray_type && Py_TYPE(object) != memmap_type))
        return 0;
    PyArrayObject *array = (PyArrayObject *)object;
    const PyArray_Descr *dtype = PyArray_DESCR(array);
    int flags = PyArray_FLAGS(array), needed = NPY_ARRAY_ALIGNED | (slot == 1 ? 0 : NPY_ARRAY_WRITEABLE);
    if (dtype->type_num != (entry->storage[slot] == FO_FLOAT64 ? NPY_DOUBLE : NPY_FLOAT) || dtype->byteorder != '=' ||
        (flags & needed) != needed || PyArray_NDIM(array) != entry->dimensions)
        return 0;
    for (int i = 0; i < entry->dimensions; i++)
        if (PyArray_DIM(array, i) != entry->shape[i])
            return 0;
    *order &= flags;
    return PyArray_DATA(array);
}

/* Binds one slot; -1 if the array cannot be taken, else whether its address is another than at the last step. */
static int bind(PyObject *object, fo_entry *entry, int slot, int *order)
{
    void *data = address(object, entry, slot, order);
    if (!data)
        return -1;
    int moved = data != entry->data[slot];
    entry->data[slot] = data;
    return moved;
}

static uintptr_t low_of(const fo_entry *entry, int slot) { return (uintptr_t)entry->data[slot]; }

static uintptr_t high_of(const fo_entry *entry, int slot)
{
    return low_of(entry, slot) + (size_t)entry->n * fo_storage_size(entry->storage[slot]);
}

static int by_low(const void *a, const void *b)
{
    uintptr_t x = *(const uintptr_t *)a, y = *(const uintptr_t *)b;
    return (x > y) - (x < y);
}

static int states_of(const fo_plan *plan, const fo_entry *entry) { return fo_rule_states(plan->runs[entry->run].rule); }

/* Sorts what a step writes; 0 if some of it overlaps. */
static int sort_written(fo_plan *plan)
{
    int64_t count = 0;
    for (int64_t e = 0; e < plan->entry_count; e++) {
        const fo_entry *entry = &plan->entries[e];
        for (int slot = 0; slot < 2 + states_of(plan, entry); slot++)
            if (slot != 1 && entry->n > 0) {
                plan->written[2 * count] = low_of(entry, slot);
                plan->written[2 * count++ + 1] = high_of(entry, slot);
            }
    }
    qsort(plan->written, (size_t)count, 2 * sizeof *plan->written, by_low);
    for (int64_t i = 1; i < count; i++)
        if (plan->written[2 * i] < plan->written[2 * i - 1])
            return 0;
    plan->written_count = count;
    return 1;
}

static int gradient_overlaps(const fo_plan *plan, const fo_entry *entry)
{
    uintptr_t low = low_of(entry, 1), high = high_of(entry, 1);
    int64_t from = 0, to = plan->written_count; /* the first written range that ends beyond low */
    while (from < to) {
        int64_t middle = (from + to) / 2;
        if (plan->written[2 * middle + 1] > low)
            to = middle;
        else
            from = middle + 1;
    }
    return entry->n > 0 && from < plan->written_count && plan->written[2 * from] < high;
}

static int bind_all(fo_plan *plan, PyObject *params, PyObject *grads, PyObject *states)
{
    int wrote_elsewhere = plan->written_count == 0;
    Py_ssize_t next_state = 0;
    if (PyTuple_Size(params) != plan->entry_count || PyTuple_Size(grads) != plan->entry_count)
        return 0;
    for (int64_t e = 0; e < plan->entry_count; e++) {
        fo_entry *entry = &plan->entries[e];
        int order = NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_F_CONTIGUOUS, moved[FO_SLOTS] = {0};
        int slots = 2 + states_of(plan, entry);
        moved[0] = bind(PyTuple_GetItem(params, e), entry, 0, &order);
        moved[1] = bind(PyTuple_GetItem(grads, e), entry, 1, &order);
        for (int slot = 2; slot < slots; slot++)
            moved[slot] = bind(PyTuple_GetItem(states, next_state++), entry, slot, &order);
        for (int slot = 0; slot < slots; slot++) {
            if (moved[slot] < 0 || !order) {
                plan->written_count = 0; /* the addresses are no longer those that were checked */
                return 0;
            }
            wrote_elsewhere |= slot != 1 && moved[slot];
        }
        if (moved[1] && !wrote_elsewhere && gradient_overlaps(plan, entry)) {
            plan->written_count = 0;
            return 0;
        }
    }
    if (!wrote_elsewhere)
        return 1;
    plan->written_count = 0;
    if (!sort_written(plan))
        return 0;
    for (int64_t e = 0; e < plan->entry_count; e++)
        if (gradient_overlaps(plan, &plan->entries[e])) {
            plan->written_count = 0;
            return 0;
        }
    return 1;
}

/* One tuple of floats per run. */
static int read_coefficients(fo_plan *plan, PyObject *rows)
{
    if (PyList_Size(rows) != plan->run_count)
        return 0;
    for (int32_t r = 0; r < plan->run_count; r++) {
        PyObject *row = PyList_GetItem(rows, r);
        for (int i = 0; i < fo_rule_coefficients(plan->runs[r].rule); i++)
            plan->runs[r].coefficients[i] = PyFloat_AsDouble(PyTuple_GetItem(row, i));
    }
    return !PyErr_Occurred();
}

/* What the functions below hang on to: a plan, and a list whose only item counts its steps. */
typedef struct {
    fo_plan *plan;
    PyObject *counter;
} bound;

static const char CAPSULE[] = "fastoptim plan";

static void release(PyObject *capsule)
{
    bound *b = PyCapsule_GetPointer(capsule, CAPSULE);
    fo_plan_free(b->plan);
    Py_DECREF(b->counter);
    free(b);
}

/* Smaller work than this is over before another thread could make use of the interpreter. */
static const double RELEASE_BYTES = 64e3;

static PyObject *step(PyObject *capsule, PyObject *const *args, Py_ssize_t count)
{
    bound *b = PyCapsule_GetPointer(capsule, CAPSULE);
    if (!b || count != 5)
        return PyErr_Format(PyExc_TypeError, "step takes params, grads, states, coefficients and scale");
    fo_plan *plan = b->plan;
    double scale = PyFloat_AsDouble(args[4]);
    if (!read_coefficients(plan, args[3]) || !bind_all(plan, args[0], args[1], args[2])) {
        PyErr_Clear();
        Py_RETURN_FALSE;
    }
    PyObject *number = PyLong_FromLongLong(PyLong_AsLongLong(PyList_GetItem(b->counter, 0)) + 1);
    if (!number)
        return 0;
    if (plan->step_bytes < RELEASE_BYTES) {
        fo_plan_apply(plan, scale);
    } else {
        Py_BEGIN_ALLOW_THREADS
        fo_plan_apply(plan, scale);
        Py_END_ALLOW_THREADS
    }
    /* Counted here, so that Ctrl-C right after the step finds it counted. */
    PyList_SetItem(b->counter, 0, number);
    Py_RETURN_TRUE;
}

static PyObject *sum_squares(PyObject *capsule, PyObject *const *args, Py_ssize_t count)
{
    bound *b = PyCapsule_GetPointer(capsule, CAPSULE);
    if (!b || count != 3)
        return PyErr_Format(PyExc_TypeError, "sum_squares takes grads, grad_scale and k");
    fo_plan *plan = b->plan;
    double grad_scale = PyFloat_AsDouble(args[1]), k = PyFloat_AsDouble(args[2]), sum;
    int plain = PyTuple_Size(args[0]) == plan->entry_count;
    for (int64_t e = 0; plain && e < plan->entry_count; e++) {
        int order = NPY_ARRAY_C_CONTIGUOUS;
        int moved = bind(PyTuple_GetItem(args[0], e), &plan->entries[e], 1, &order);
        plain = moved >= 0 && order;
        if (moved) /* the next step checks this gradient again */
            plan->written_count = 0;
    }
    if (!plain) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    Py_BEGIN_ALLOW_THREADS
    sum = fo_plan_sum_squares(plan, grad_scale, k);
    Py_END_ALLOW_THREADS
    return PyFloat_FromDouble(sum);
}

int fo_functions(fo_plan *plan, uintptr_t counter, uintptr_t functions)
{
    static PyMethodDef methods[] = {
        {"step", (PyCFunction)(void (*)(void))step, METH_FASTCALL, 0},
        {"sum_squares", (PyCFunction)(void (*)(void))sum_squares, METH_FASTCALL, 0},
    };
    PyGILState_STATE gil = PyGILState_Ensure();
    bound *b = malloc(sizeof *b);
    PyObject *capsule = b ? PyCapsule_New(b, CAPSULE, release) : 0;
    int made = capsule != 0;
    if (made) {
        *b = (bound){plan, (PyObject *)counter};
        Py_INCREF(b->counter);
    } else {
        free(b);
        fo_plan_free(plan);
    }
    for (int i = 0; made && i < 2; i++) {
        PyObject *function = PyCFunction_New(&methods[i], capsule);
        made = function && PyList_Append((PyObject *)functions, function) == 0;
        Py_XDECREF(function);
    }
    Py_XDECREF(capsule);
    PyErr_Clear();
    PyGILState_Release(gil);
    return made;
}
