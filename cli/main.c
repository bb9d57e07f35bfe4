/* main.c - the `quarry` client: picks a command from the table and prints its error.
 *
 * Nothing below prints an error or ends the program: commands return a status and a sentence.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "cli/args.h"
#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/text.h"

#include "common/version.h"


static const struct command *const commands[] = {
	&cmd_quantize, &cmd_eval, &cmd_submit, &cmd_jobs, &cmd_show, &cmd_watch, &cmd_cancel, &cmd_retry,
	&cmd_fetch, &cmd_workers, &cmd_convert, &cmd_inspect, &cmd_dequantize,
};

enum { COMMANDS = sizeof(commands) / sizeof(commands[0]) };

static void print_overview(void)
{
	printf("usage: quarry COMMAND [arguments]\n\nQuarry quantizes language models, on this machine or on "
	       "a fleet.\n\nCommands:\n");
	for (size_t i = 0; i < COMMANDS; i++)
		printf("  %-10s %s\n", commands[i]->name, commands[i]->summary);
	printf("\n'quarry COMMAND --help' tells the options of one.\n"
	       "Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.\n");
}

static const struct command *find_command(const char *name)
{
	for (size_t i = 0; i < COMMANDS; i++)
		if (strcmp(commands[i]->name, name) == 0)
			return commands[i];
	return NULL;
}

static enum exit_status refuse_command(const char *name)
{
	const char *names[COMMANDS], *nearest;

	for (size_t i = 0; i < COMMANDS; i++)
		names[i] = commands[i]->name;
	nearest = nearest_word(name, names, COMMANDS);
	print_error(nearest ? "unknown command '%s'; did you mean '%s'?"
			    : "unknown command '%s'; 'quarry --help' lists them", name, nearest);
	return EXIT_USAGE;
}

static enum exit_status run_command(const struct command *command, int argc, char **argv)
{
	struct err err = ERR_INIT;
	struct args args;
	enum exit_status status;

	if (args_parse(&args, command, argc, argv, &err) != 0) {
		status = err.code == ERR_NOMEM ? EXIT_FAILED : EXIT_USAGE;
	} else if (args.help) {
		args_print_help(command);
		status = EXIT_OK;
	} else {
		status = command->run(&args, &err);
	}
	if (status != EXIT_OK && err.text[0])
		print_error("%s", err.text);
	args_deinit(&args);
	return status;
}

static enum exit_status dispatch(int argc, char **argv)
{
	const struct command *command;

	if (argc < 2) {
		print_error("no command given; 'quarry --help' lists them");
		return EXIT_USAGE;
	}
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
		print_overview();
		return EXIT_OK;
	}
	if (strcmp(argv[1], "--version") == 0) {
		printf("quarry " QUARRY_VERSION "\n");
		return EXIT_OK;
	}
	command = find_command(argv[1]);
	return command ? run_command(command, argc - 2, argv + 2) : refuse_command(argv[1]);
}

int main(int argc, char **argv)
{
	enum exit_status status;

	interrupt_setup();
	status = dispatch(argc, argv);
	if ((fflush(stdout) != 0 || ferror(stdout)) && status == EXIT_OK) {
		print_error("cannot write to standard output");
		status = EXIT_FAILED;
	}
	return status;
}
