/* DIR/run of the worker agent: starts the interpreter of DIR with the loader and the libraries of DIR.
 *
 * Linked statically, so that it starts in a root file system that has no C library. Where it is, is found out when it runs:
 * DIR may be copied or mounted anywhere. The variables that would make this loader, C library or OpenSSL load files that
 * were made for those of the image are left out; nothing that actions run sees any variable of the agent.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

/* Variables, or with an underscore at the end beginnings of variables. */
static const char *const unwanted[] = {
    "LD_", "PYTHON_", "PYTHONHOME", "PYTHONPATH", "GCONV_PATH", "LOCPATH", "NLSPATH", "GLIBC_TUNABLES",
    "OPENSSL_CONF", "OPENSSL_MODULES", "OPENSSL_ENGINES", NULL,
};

static int is_unwanted(const char *variable) {
    for (const char *const *name = unwanted; *name != NULL; name++) {
        size_t length = strlen(*name);
        if (strncmp(variable, *name, length) == 0 && ((*name)[length - 1] == '_' || variable[length] == '='))
            return 1;
    }
    return 0;
}

static char *joined(const char *first, const char *second) {
    char *text = malloc(strlen(first) + strlen(second) + 1);
    if (text == NULL) {
        fputs("rexec: no memory\n", stderr);
        exit(1);
    }
    return strcat(strcpy(text, first), second);
}

/* The directory of this program, with whatever symbolic links lead to it resolved. */
static char *own_directory(void) {
    char *path = realpath("/proc/self/exe", NULL);
    if (path == NULL) { /* there is no /proc */
        const char *given = (const char *)getauxval(AT_EXECFN);
        path = given != NULL ? realpath(given, NULL) : NULL;
    }
    if (path == NULL) {
        fprintf(stderr, "rexec: cannot find its own directory: %s\n", strerror(errno));
        exit(1);
    }
    *strrchr(path, '/') = '\0';
    return path;
}

int main(int count, char **arguments, char **environment) {
    char *directory = own_directory();
    char *loader = joined(directory, "/lib/rexec-agent");
    char *fixed[] = {
        loader, "--inhibit-cache", "--library-path", joined(directory, "/lib"), joined(directory, "/bin/python3"),
        /* No variables, no user's directory, no site-packages; text is UTF-8 whatever locales the image has. */
        "-I", "-S", "-B", "-X", "utf8", joined(directory, "/lib/start.py"),
    };
    size_t fixed_count = sizeof fixed / sizeof *fixed, variables = 0;
    while (environment[variables] != NULL)
        variables++;
    char **command = calloc(fixed_count + (size_t)count + 1, sizeof *command);
    char **kept = calloc(variables + 2, sizeof *kept);
    if (command == NULL || kept == NULL) {
        fputs("rexec: no memory\n", stderr);
        return 1;
    }
    memcpy(command, fixed, sizeof fixed);
    for (int at = 1; at < count; at++)
        command[fixed_count + (size_t)at - 1] = arguments[at];
    size_t next = 0;
    for (size_t at = 0; at < variables; at++)
        if (!is_unwanted(environment[at]))
            kept[next++] = environment[at];
    kept[next] = joined("OPENSSL_CONF=", joined(directory, "/lib/openssl.cnf"));
    execve(loader, command, kept);
    fprintf(stderr, "rexec: cannot start %s: %s\n", loader, strerror(errno));
    return 1;
}
