/* An external delegate of LiteRT that computes SOFTMAX of one row of float32. Options: fail_prepare
 * refuses every model; fail_after N fails each frame after the first N of this process. */
#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, ERROR = 1, SOFTMAX = 25 };

/* The beginning of the structures of LiteRT's C interface, as far as they are used here. */
typedef struct { int size; int data[]; } IntArray;
typedef struct { int type; float *data; IntArray *dims; char others[88]; } Tensor;
typedef struct { IntArray *inputs, *outputs; } Node;
typedef struct Context Context;
typedef struct {
  void *(*init)(Context *, const char *, size_t);
  void (*release)(Context *, void *);
  int (*prepare)(Context *, Node *);
  int (*invoke)(Context *, Node *);
  const char *(*profiling_string)(const Context *, const Node *);
  int32_t builtin_code;
  const char *custom_name;
  int version;
  void *unused[8];
} Registration;
typedef struct Delegate {
  void *data;
  int (*prepare)(Context *, struct Delegate *);
  void *copy_from, *copy_to, *free_handle;
  int64_t flags;
  void *opaque[4];
} Delegate;
struct Context {
  size_t tensors_size;
  int (*GetExecutionPlan)(Context *, IntArray **);
  Tensor *tensors;
  void *impl;
  void *ResizeTensor;
  void (*ReportError)(Context *, const char *, ...);
  void *AddTensors;
  int (*GetNodeAndRegistration)(Context *, int, Node **, Registration **);
  int (*ReplaceNodeSubsetsWithDelegateKernels)(Context *, Registration, const IntArray *, Delegate *);
};

static atomic_long frames;
static long fail_after = -1;
static bool fail_prepare;

static int invoke(Context *context, Node *node) {
  if (fail_after >= 0 && atomic_fetch_add(&frames, 1) >= fail_after) {
    context->ReportError(context, "the accelerator is gone");
    return ERROR;
  }
  for (int i = 0; i < node->outputs->size; i++) {
    Tensor *to = &context->tensors[node->outputs->data[i]];
    Tensor *from = &context->tensors[node->inputs->data[i]];
    int count = from->dims->data[from->dims->size - 1];
    float most = from->data[0], sum = 0;
    for (int k = 1; k < count; k++) most = fmaxf(most, from->data[k]);
    for (int k = 0; k < count; k++) sum += to->data[k] = expf(from->data[k] - most);
    for (int k = 0; k < count; k++) to->data[k] /= sum;
  }
  return OK;
}

static int prepare(Context *context, Delegate *delegate) {
  if (fail_prepare) {
    context->ReportError(context, "no accelerator is connected");
    return ERROR;
  }
  IntArray *plan;
  if (context->GetExecutionPlan(context, &plan) != OK) return ERROR;
  IntArray *chosen = calloc(1, sizeof(IntArray) + sizeof(int) * plan->size);
  for (int i = 0; i < plan->size; i++) {
    Node *node;
    Registration *registration;
    if (context->GetNodeAndRegistration(context, plan->data[i], &node, &registration) != OK) return ERROR;
    if (registration->builtin_code == SOFTMAX) chosen->data[chosen->size++] = plan->data[i];
  }
  Registration kernel = {.invoke = invoke, .custom_name = "TestDelegate", .version = 1};
  int status = context->ReplaceNodeSubsetsWithDelegateKernels(context, kernel, chosen, delegate);
  free(chosen);
  return status;
}

Delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t count,
                                        void (*report_error)(const char *)) {
  for (size_t i = 0; i < count; i++) {
    if (!strcmp(keys[i], "fail_after")) fail_after = atol(values[i]);
    else if (!strcmp(keys[i], "fail_prepare")) fail_prepare = !strcmp(values[i], "1");
    else {
      report_error("an option is not known");
      return NULL;
    }
  }
  Delegate *made = calloc(1, sizeof(Delegate));
  made->prepare = prepare;
  return made;
}

void tflite_plugin_destroy_delegate(Delegate *delegate) { free(delegate); }
