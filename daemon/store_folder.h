/*
 * The folder of a store, for store.c; what others may know of it is in store.h.
 */
#ifndef REACTORD_STORE_FOLDER_H
#define REACTORD_STORE_FOLDER_H

/* Makes the folder of that name, or finds it made by another process. Returns a descriptor that keeps it from being removed as long as it is
 * open, and the path, for the caller to free; -1 with errno. */
int store_folder_take(const char *name, char **path) __attribute__((warn_unused_result));

#endif
