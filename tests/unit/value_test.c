/*
 * Plain data: copies are deep, comparison ignores the order of fields.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "value.h"

/* A string value. */
static struct value text(const char *s)
{
	struct value v;

	value_string(&v, s, strlen(s));
	return v;
}

/* An integer value. */
static struct value integer(int64_t n)
{
	return (struct value){.kind = VALUE_INTEGER, .integer = n};
}

/* A table { "a", { x = true, [2.5] = nil }, name = "b\0c" }, its named fields in either order. */
static struct value sample(bool other_order)
{
	struct value t = {.kind = VALUE_TABLE}, inner = {.kind = VALUE_TABLE};

	value_add(&inner, text("x"))->value = (struct value){.kind = VALUE_BOOLEAN, .boolean = true};
	value_add(&inner, (struct value){.kind = VALUE_NUMBER, .number = 2.5});
	if (other_order)
		value_string(&value_add(&t, text("name"))->value, "b\0c", 3);
	value_add(&t, integer(1))->value = text("a");
	value_add(&t, integer(2))->value = inner;
	if (!other_order)
		value_string(&value_add(&t, text("name"))->value, "b\0c", 3);
	return t;
}

/* A copy is equal, and stays when the original goes. */
static void copies_are_deep(void **state)
{
	struct value a = sample(false), b, c;

	(void)state;
	value_copy(&b, &a);
	value_copy(&c, &b);
	assert_true(value_equal(&a, &b));
	value_clear(&a);
	assert_int_equal(a.kind, VALUE_NIL);
	assert_true(value_equal(&c, &b));
	assert_int_equal(value_get(&b, "name")->string.length, 3);
	assert_memory_equal(value_get(&b, "name")->string.bytes, "b\0c", 4);
	assert_null(value_get(&b, "nam"));
	assert_null(value_get(value_get(&b, "name"), "name"));
	value_clear(&b);
	value_clear(&c);
}

/* The order of fields does not matter, everything else does. */
static void comparison_is_deep(void **state)
{
	struct value a = sample(false), b = sample(true);
	struct value nan_value = {.kind = VALUE_NUMBER, .number = NAN}, one = {.kind = VALUE_NUMBER, .number = 1}, whole = integer(1);

	(void)state;
	assert_true(value_equal(&a, &b) && value_equal(&b, &a));
	value_get(&b, "name")->string.bytes[2] = 'd';
	assert_false(value_equal(&a, &b));
	value_clear(&b);
	b = sample(false);
	value_add(&b, integer(3));
	assert_false(value_equal(&a, &b));
	assert_true(value_equal(&nan_value, &nan_value));
	assert_false(value_equal(&one, &whole));
	value_clear(&a);
	value_clear(&b);
}

/* Many fields are kept in order. */
static void tables_grow(void **state)
{
	struct value t = {.kind = VALUE_TABLE}, copy;

	(void)state;
	for (int64_t i = 1; i <= 1000; i++)
		value_add(&t, integer(i))->value = integer(i * i);
	assert_int_equal(t.table.count, 1000);
	for (int64_t i = 1; i <= 1000; i++)
		assert_int_equal(t.table.fields[i - 1].value.integer, i * i);
	value_copy(&copy, &t);
	assert_true(value_equal(&copy, &t));
	value_clear(&copy);
	value_clear(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(copies_are_deep),
		cmocka_unit_test(comparison_is_deep),
		cmocka_unit_test(tables_grow),
	};

	return cmocka_run_group_tests_name("value", tests, NULL, NULL);
}
