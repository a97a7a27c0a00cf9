/*
 * reactord ctl: asks a running daemon by its control socket.
 */
#ifndef REACTORD_CTL_H
#define REACTORD_CTL_H

/* The whole subcommand with its arguments; argv[0] is what it was called by. Returns the exit status (command.h). */
int ctl_main(int argc, char **argv);

#endif
